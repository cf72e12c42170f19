"""Doors: the keys at which a configuration takes a component, and what kind of component each of them accepts."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

TARGET = "_target_"
OURS = "gradroute."


@dataclass(frozen=True)
class Door:
    """What a key accepts: subclasses of `bases`, and functions if `functions`.

    what: the kind of component, as messages name it. supplied: arguments that the run supplies.
    """

    what: str
    bases: tuple[str, ...]
    supplied: tuple[str, ...] = ()
    functions: bool = False


DOORS = {
    "task": Door("a task", ("gradroute.tasks.base.Task",), ("config", "data", "run")),
    "dataset": Door("a data set", ("gradroute.data.base.Dataset",)),
    "environment": Door("an environment", ("gradroute.data.environments.base.Environment",)),
    "model": Door(
        "a model", ("torch.nn.modules.module.Module", "gradroute.models.base.ModelPlan"),
        ("shape", "classes", "vocabulary", "context", "groups", "actions"), functions=True,
    ),
    "ablation": Door("an ablation", ("gradroute.tasks.ablations.AblationMethod",)),
    "steps": Door("a step", ("gradroute.steps.base.Step",)),
    "measures": Door("a measure", ("gradroute.training.measures.Measure",), ("shape", "classes")),
    "losses.error": Door("an error", ("gradroute.training.measures.Measure",), ("shape", "classes")),
    "losses.penalties": Door("a penalty", ("gradroute.training.penalties.Penalty",)),
    "plots": Door("a plot", ("gradroute.reporting.plots.Plot",), ("run",), functions=True),
    "tracker": Door("a tracker", ("gradroute.running.trackers.Tracker",)),
}  # fmt: skip


def foreign(value: Any, key: str = "") -> dict[str, str]:
    """Return every `_target_` in a configuration that is not part of gradroute, by its key."""
    found: dict[str, str] = {}
    if isinstance(value, Mapping):
        for name, inner in value.items():
            here = f"{key}.{name}" if key else str(name)
            if name == TARGET:
                found |= {} if isinstance(inner, str) and inner.startswith(OURS) else {here: str(inner)}
            else:
                found |= foreign(inner, here)
    elif isinstance(value, list | tuple):
        for place, inner in enumerate(value):
            found |= foreign(inner, f"{key}.{place}")
    return found
