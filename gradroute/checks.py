"""Every range and cross-field check of a configuration that needs neither model nor data."""

import math
from collections.abc import Callable
from typing import Any

from gradroute.errors import UserError, unknown
from gradroute.schema import STEPS, Config, RoutingConfig, TrainerConfig


def _require(holds: bool, key: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{key}={value}: must be {right}")


def check(config: Config) -> None:
    """Raise UserError at the first value outside its range or against another; weights become floats."""
    _check_names(config)
    _check_trainer(config.trainer)
    _require(0 <= config.seed < 2**63, "seed", config.seed, "from 0 to 2**63 - 1")
    _require(bool(config.model.hidden), "model.hidden", config.model.hidden, "at least one width")
    for width in [*config.model.hidden, config.model.encoding]:
        _require(1 <= width <= 65536, "model.hidden/encoding", width, "from 1 to 65536")
    _require(config.losses.correlation >= 0, "losses.correlation", config.losses.correlation, "0 or more")
    for region, weight in config.losses.l1.items():
        _require(0 <= weight < math.inf, f"losses.l1.{region}", weight, "0 or more, and finite")
    _check_routing(config.routing)


def _one_of(key: str, value: str, valid: tuple[str, ...]) -> None:
    if value not in valid:
        raise unknown(f"value of {key}:", value, valid)


def _check_names(config: Config) -> None:
    regions = tuple(config.routing.regions)
    _require(
        bool(config.name) and all(c.isalnum() or c in "_-" for c in config.name),
        "name",
        config.name,
        "letters, digits, _ and -",
    )
    for step in config.steps:
        _one_of("steps", step, STEPS)
    positions = [STEPS.index(step) for step in config.steps]
    _require(positions == sorted(set(positions)), "steps", config.steps, f"in this order, each once: {list(STEPS)}")
    _require("train" in config.steps, "steps", config.steps, "a list with 'train' in it")
    if "report" in config.steps:
        _require("evaluate" in config.steps, "steps", config.steps, "evaluated before the report")
    _one_of("ablation.kind", config.ablation.kind, ("zero", "mean"))
    if config.ablation.region is not None:
        _one_of("ablation.region", config.ablation.region, regions)
    for region in [*config.losses.certificates, *config.losses.l1]:
        _one_of("losses' region", region, regions)
    duplicated = len(set(config.losses.certificates)) < len(config.losses.certificates)
    _require(not duplicated, "losses.certificates", config.losses.certificates, "each region once")


def _check_trainer(trainer: TrainerConfig) -> None:
    _one_of("trainer.schedule", trainer.schedule, ("constant", "cosine"))
    _one_of("trainer.precision", trainer.precision, ("auto", "float32", "bfloat16"))
    ranges: dict[str, tuple[Callable[[Any], bool], str]] = {
        "epochs": (lambda v: 1 <= v <= 100_000, "from 1 to 100000"),
        "batch_size": (lambda v: 2 <= v <= 1_000_000, "from 2 to 1000000"),
        "lr": (lambda v: 0 < v < math.inf, "above 0"),
        "betas": (lambda v: len(v) == 2 and all(0 <= b < 1 for b in v), "two numbers from 0 to below 1"),
        "weight_decay": (lambda v: 0 <= v < math.inf, "0 or more"),
        "warmup_steps": (lambda v: v >= 0, "0 or more"),
        "train_limit": (lambda v: v is None or v >= 2, "null or at least 2"),
        "test_limit": (lambda v: v is None or v >= 1, "null or at least 1"),
    }
    for key, (holds, right) in ranges.items():
        value = getattr(trainer, key)
        _require(holds(value), f"trainer.{key}", value, right)


def _check_routing(routing: RoutingConfig) -> None:
    _one_of("routing.unassigned", routing.unassigned, ("error", "unrouted"))
    _require(bool(routing.groups), "routing.groups", "{}", "at least one group")
    _require("unassigned" not in routing.groups, "routing.groups", "unassigned", "another name: this is reserved")
    owner: dict[int, str] = {}
    for name, group in routing.groups.items():
        _require(bool(group.labels), f"routing.groups.{name}.labels", group.labels, "at least one label")
        for label in group.labels:
            if label in owner:
                raise UserError(
                    f"routing.groups: label {label} is in '{owner[label]}' and '{name}'; groups must not overlap"
                )
            owner[label] = name
    for group_name, weights in routing.routes.items():
        _one_of("routing.routes (group)", group_name, tuple(routing.groups))
        for region, weight in weights.items():
            _one_of(f"routing.routes.{group_name} (region)", region, tuple(routing.regions))
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            _require(number, f"routing.routes.{group_name}.{region}", weight, "a finite number")
            weights[region] = float(weight)
