"""Find the runs that can be trained together as one batched program: those that differ in numbers only."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from gradroute.config.doors import OURS, TARGET
from gradroute.config.identity import to_mapping
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import UserError

AUTO = {"cuda": 32, "cpu": 1}  # replicas at once, if the memory holds them; on two cores stacking is slower (README)


def shape_of(config: Config) -> str:
    """Return what runs must share to be stacked: all but seed, name, loss and mask weights, and optimizer numbers.

    Terms and routes may differ too: a term that a run lacks has weight 0 there, a route weight 1.
    """
    mapping: dict[str, Any] = to_mapping(config)
    for key in ("seed", "name", "output_dir"):
        del mapping[key]
    for key in ("lr", "betas", "momentum", "weight_decay"):
        del mapping["trainer"][key]
    mapping["losses"] = {"certificates": config.losses.certificates, "error": config.losses.error}
    routes = config.routing.routes.items()
    timed = {f"{g} {r}": v for g, row in routes for r, v in row.items() if isinstance(v, dict)}
    mapping["routing"]["routes"] = timed  # plain weights are numbers, which may differ
    return json.dumps(mapping, sort_keys=True)


def obstacle(config: Config) -> str | None:
    """Return why a run can only be trained alone, or None."""
    if config.trainer.batches == "by_group":
        return "trainer.batches=by_group: its batches differ in size from run to run"
    if config.trainer.accumulate > 1:
        return f"trainer.accumulate={config.trainer.accumulate}: batches are stacked whole"
    if config.trainer.compile is True:
        return "trainer.compile=true: one model is compiled at a time; with auto, a stack's updates are"
    model = locate(config.model[TARGET], "model")
    if not getattr(model, "stackable", False):
        return f"model {config.model[TARGET]}: it is trained alone"
    named = [config.losses.error, *config.losses.penalties]
    if others := [str(one[TARGET]) for one in named if one and not str(one[TARGET]).startswith(OURS)]:
        return f"{others[0]}: a loss that is not gradroute's is trained alone"
    parameters = [name for name, region in config.routing.regions.items() if region.has_parameters]
    if parameters:
        return f"region '{parameters[0]}' has parameters, which are frozen in one model at a time"
    return None


def together(
    configs: Sequence[Config], device: str, position: Callable[[Config], str] = lambda config: ""
) -> list[list[Config]]:
    """Group the runs, in the order given, into lists that can be trained together, each of at most `stack` runs.

    `device` is the device type, by which `stack: auto` decides. `position` tells how far a run has come: only runs at
    the same position go together. Raises: UserError if `stack` is a number and a run cannot be stacked.
    """
    stacks: list[list[Config]] = []
    open_ones: dict[str, list[Config]] = {}  # by shape, the stack that has room
    for config in configs:
        size = AUTO.get(device, 1) if config.stack == "auto" else int(config.stack)
        reason = obstacle(config)
        if reason and config.stack != "auto" and size > 1:
            raise UserError(f"stack={config.stack}: cannot be used with {reason}; set stack=1 or auto")
        shape = shape_of(config) + position(config) if size > 1 and not reason else None
        room = open_ones.get(shape, []) if shape else []
        if room and len(room) < size:
            room.append(config)
            continue
        stacks.append([config])
        if shape:
            open_ones[shape] = stacks[-1]
    return stacks
