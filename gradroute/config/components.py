"""Check the components of a configuration, fill in their default arguments, and build the steps."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.config.doors import DOORS, TARGET
from gradroute.config.limits import require
from gradroute.config.schema import Config
from gradroute.config.targets import arguments_of, build, completed, locate
from gradroute.errors import UserError, unknown

# steps by name: the import path, and the section of the configuration with the arguments
STEPS: dict[str, tuple[str, str | None]] = {
    "pretrain": ("gradroute.steps.pretrain.Pretrain", "pretrain"),
    "train": ("gradroute.steps.train.Train", None),
    "certify": ("gradroute.steps.certify.Certify", None),
    "ablate": ("gradroute.steps.ablate.Ablate", None),
    "unlearn": ("gradroute.steps.unlearn.RMU", "unlearn"),
    "finetune": ("gradroute.steps.finetune.FineTune", "finetune"),
    "relearn": ("gradroute.steps.relearn.Relearn", "relearn"),
    "steer": ("gradroute.steps.steer.Steer", "steering"),
    "extract": ("gradroute.steps.extract.Extract", "extract"),
    "profiles": ("gradroute.steps.profiles.Profiles", "profiles"),
    "audit": ("gradroute.steps.audit.Audit", "audit"),
    "evaluate": ("gradroute.steps.evaluate.Evaluate", None),
    "report": ("gradroute.steps.report.Report", None),
}
SECTIONS = {section: name for name, (_, section) in STEPS.items() if section}


def located(component: Any, door: str, key: str) -> Any:
    """Return the class or function that a component names. Raises: UserError if it is not of the door's kind."""
    if not isinstance(component, Mapping) or TARGET not in component:
        right = f"a mapping with {TARGET}, the import path of {DOORS[door].what}"
        raise UserError(f"{key}={component}: must be {right}")
    kind, found = DOORS[door], locate(component[TARGET], key)
    bases = tuple(locate(base, key) for base in kind.bases)
    subclass = inspect.isclass(found) and issubclass(found, bases)
    if not subclass and not (kind.functions and inspect.isroutine(found)):
        names = " or ".join(base.__name__ for base in bases)
        also = " or a function" if kind.functions else ""
        raise UserError(f"{key}.{TARGET}={component[TARGET]}: is not {kind.what}; use a subclass of {names}{also}")
    if subclass and inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise UserError(f"{key}.{TARGET}={component[TARGET]}: has no {missing}, which {kind.what} must define")
    return found


def filled(component: Any, door: str, key: str, besides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Return a component with all arguments, checked; `besides` are keys that are no arguments. Raises: UserError."""
    found = located(component, door, key)
    own = {name: component[name] for name in besides if name in component}
    given = {name: value for name, value in arguments_of(component).items() if name not in besides}
    return {TARGET: component[TARGET], **own, **completed(found, given, key, DOORS[door].supplied, besides)}


def complete(config: Config) -> None:
    """Check every component of a configuration and fill in missing arguments. Raises: UserError."""
    of_data = "dataset" if config.environment is None else "environment"
    fits = config.environment is None or not config.dataset
    require(
        fits, "dataset", config.dataset.get(TARGET), "null beside an environment: experiments override /dataset: null"
    )
    for key in (of_data, "model", "task"):
        setattr(config, key, filled(getattr(config, key), key, key))
    config.ablation = {"region": None} | filled(config.ablation, "ablation", "ablation", ("region",))
    if config.tracker is not None:
        config.tracker = filled(config.tracker, "tracker", "tracker")
    if config.losses.error is not None:
        config.losses.error = filled(config.losses.error, "losses.error", "losses.error")
    for key, owner, door in (
        ("penalties", config.losses, "losses.penalties"), ("measures", config, "measures"), ("plots", config, "plots")
    ):  # fmt: skip
        entries = getattr(owner, key)
        setattr(owner, key, [filled(entry, door, f"{door}.{i}") for i, entry in enumerate(entries)])
    _complete_steps(config)


def _complete_steps(config: Config) -> None:
    """Check the steps and fill in their arguments; those of a named step stay in its section."""
    found: list[Any] = []
    for place, entry in enumerate(config.steps):
        if not isinstance(entry, str):
            found.append(filled(entry, "steps", f"steps.{place}"))
            continue
        if entry not in STEPS:
            raise unknown("value of steps:", entry, STEPS)
        found.append(entry)
    config.steps = found
    names = step_names(config)
    for section, name in SECTIONS.items():
        given = getattr(config, section)
        if given is not None:
            filled_in = filled({TARGET: STEPS[name][0], **given}, "steps", section)
            setattr(config, section, filled_in if TARGET in given else arguments_of(filled_in))
        if (name in names) != (given is not None):
            right = f"contain {name} if, and only if, {section} is not null"
            raise UserError(f"steps={names}: must {right}")


def step_names(config: Config) -> list[str]:
    """Return the name of each step: a built-in name, or the last part of a component's import path."""
    return [entry if isinstance(entry, str) else entry[TARGET].rpartition(".")[2] for entry in config.steps]


def with_steps(config: Config, steps: Sequence[str]) -> Config:
    """Return a copy of a configuration that makes these built-in steps, without the sections of all others."""
    changed = copy.deepcopy(config)
    changed.steps = list(steps)
    for section, name in SECTIONS.items():
        if name not in steps:
            setattr(changed, section, None)
    return changed


def training_steps(config: Config) -> list[str]:
    """Return the built-in steps of a configuration that make the model: `train`, and `pretrain` if it has it."""
    return [name for name in ("pretrain", "train") if name in step_names(config)]


def ablated_regions(config: Config) -> list[str]:
    """Return the regions that `ablation.region` selects: one, several, or all if it is null."""
    given = config.ablation.get("region")
    return list(config.routing.regions) if given is None else given if isinstance(given, list) else [given]


def steps_of(config: Config) -> list[Any]:
    """Build the steps of a completed configuration, in order."""
    found = []
    for place, entry in enumerate(config.steps):
        if isinstance(entry, str):
            target, section = STEPS[entry]
            found.append(
                build({TARGET: target, **(getattr(config, section) or {} if section else {})}, section or entry)
            )
        else:
            found.append(build(entry, f"steps.{place}"))
    return found
