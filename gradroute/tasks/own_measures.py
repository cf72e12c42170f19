"""Build the measures and the error that a configuration adds to a task's own, and try them on a few points."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.errors import UserError, first_line
from gradroute.training.measures import Measure
from gradroute.training.penalties import penalties_of

Found = Mapping[str, Any]  # values that a run supplies to components: see `Task.found`


def error_of(config: Config, found: Found) -> Measure | None:
    """Return the error that the configuration trains on; None for the task's own."""
    error = config.losses.error
    return None if error is None else build(error, "losses.error", **found)


def measures_of(config: Config, found: Found, besides: Sequence[Measure] = ()) -> list[Measure]:
    """Return `besides` and the measures that the configuration adds. Raises: UserError for a repeated name."""
    own: list[Measure] = [build(m, f"measures.{i}", **found) for i, m in enumerate(config.measures)]
    every = [*besides, *own]
    names = [measure.name for measure in every]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"measures: '{twice[0]}' appears twice; give each measure its own name")
    return every


def units_of(config: Config, found: Found) -> dict[str, str]:
    """Return the units of the metrics that the configuration adds, by metric."""
    error = error_of(config, found)
    units = {measure.name: measure.unit for measure in measures_of(config, found)}
    units |= {penalty.name: penalty.unit for penalty in penalties_of(config.losses, own_l1=True)}
    if error:
        gradient = f"L2 norm per image of the gradient of its {error.name}, root mean square"
        units |= {error.name: error.unit, "gradient_norm": gradient}
    return units


def try_measures(config: Config, found: Found, outputs: torch.Tensor, targets: torch.Tensor) -> None:
    """Raise UserError if an added measure or error fails on a few points, or does not return one value for each."""
    error = error_of(config, found)
    own = [("measures", each) for each in measures_of(config, found)] + ([("losses.error", error)] if error else [])
    for key, measure in own:
        try:
            shape = tuple(measure(outputs, targets).shape)
        except Exception as fault:  # whatever the user's code raises
            said = f"{type(fault).__name__}: {first_line(fault)}"
            raise UserError(f"{key}: '{measure.name}' fails ({said})") from fault
        if shape != (len(outputs),):
            right = f"({len(outputs)},), one value for each point"
            raise UserError(f"{key}: '{measure.name}' gives a tensor of shape {shape}; return one of shape {right}")
