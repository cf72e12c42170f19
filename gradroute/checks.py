"""Every range and cross-field check of a configuration that needs neither model nor data."""

import math
from collections.abc import Callable
from typing import Any

from gradroute.errors import UserError, unknown
from gradroute.routes import read_route
from gradroute.schema import STEPS, Config, GroupConfig, RoutingConfig, TrainerConfig

ABLATIONS = ("zero", "mean", "resample", "reinitialise", "remove")


def _require(holds: bool, key: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{key}={value}: must be {right}")


def check(config: Config) -> None:
    """Raise UserError at the first value outside its range or against another; weights become floats."""
    _check_names(config)
    _check_trainer(config.trainer)
    _require(0 <= config.seed < 2**63, "seed", config.seed, "from 0 to 2**63 - 1")
    _require(config.seeds is None or 1 <= config.seeds <= 10_000, "seeds", config.seeds, "null, or from 1 to 10000")
    whole = type(config.stack) is int and 1 <= config.stack <= 10_000
    _require(config.stack == "auto" or whole, "stack", config.stack, "auto, or a number of runs from 1 to 10000")
    _require(bool(config.model.hidden), "model.hidden", config.model.hidden, "at least one width")
    for width in [*config.model.hidden, config.model.encoding]:
        _require(1 <= width <= 65536, "model.hidden/encoding", width, "from 1 to 65536")
    _require(config.losses.correlation >= 0, "losses.correlation", config.losses.correlation, "0 or more")
    for region, weight in config.losses.l1.items():
        _require(0 <= weight < math.inf, f"losses.l1.{region}", weight, "0 or more, and finite")
    for key in ("window", "every"):
        _require(getattr(config.ledger, key) >= 1, f"ledger.{key}", getattr(config.ledger, key), "1 or more")
    _check_routing(config.routing)
    given = config.ablation.region if isinstance(config.ablation.region, list) else [config.ablation.region]
    for name in config.routing.regions if given == [None] else given:
        if config.routing.regions[name].parameters is not None and config.ablation.kind not in ("zero", "reinitialise"):
            raise UserError(f"ablation.kind={config.ablation.kind}: region '{name}' is parameters and has no "
                            "activations; use zero or reinitialise")  # fmt: skip
    for key, names in {"certificates": config.losses.certificates, "l1": config.losses.l1}.items():
        for name in names:
            if config.routing.regions[name].parameters is not None:
                raise UserError(
                    f"losses.{key}: region '{name}' is parameters and has no activations; name one with a site"
                )


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
    _one_of("ablation.kind", config.ablation.kind, ABLATIONS)
    given = config.ablation.region
    for region in given if isinstance(given, list) else [] if given is None else [given]:
        _one_of("ablation.region", region, regions)
    _require(given != [], "ablation.region", given, "null, a region, or a list of regions")
    for group, weight in config.losses.groups.items():
        _one_of("losses.groups", group, tuple(config.routing.groups))
        _require(0 <= weight < math.inf, f"losses.groups.{group}", weight, "0 or more, and finite")
    for region in [*config.losses.certificates, *config.losses.l1]:
        _one_of("losses' region", region, regions)
    duplicated = len(set(config.losses.certificates)) < len(config.losses.certificates)
    _require(not duplicated, "losses.certificates", config.losses.certificates, "each region once")


def _check_trainer(trainer: TrainerConfig) -> None:
    _one_of("trainer.schedule", trainer.schedule, ("constant", "cosine"))
    _one_of("trainer.precision", trainer.precision, ("auto", "float32", "bfloat16"))
    _one_of("trainer.batches", trainer.batches, ("mixed", "by_group"))
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
        _check_rule(f"routing.groups.{name}", group)
        for label in group.labels:
            if label in owner:
                raise UserError(
                    f"routing.groups: label {label} is in '{owner[label]}' and '{name}'; groups must not overlap"
                )
            owner[label] = name
    for name, region in routing.regions.items():
        where, either = f"routing.regions.{name}", (region.site is None) != (region.parameters is None)
        _require(either, where, region.site, "one with either site or parameters")
        given = region.site if isinstance(region.site, list) else [region.site]
        right = "a module's name, a glob, or a list of them"
        _require(region.site is None or all(isinstance(s, str) for s in given), f"{where}.site", region.site, right)
        alone = region.parameters is None or (region.units is None and region.output is None)
        _require(alone, where, region.units, "without units and output: parameters have their own units")
    for group_name, row in routing.routes.items():
        _one_of("routing.routes (group)", group_name, tuple(routing.groups))
        for region_name, spec in row.items():
            where = f"routing.routes.{group_name}"
            _one_of(f"{where} (region)", region_name, tuple(routing.regions))
            route = read_route(spec, f"{where}.{region_name}")
            row[region_name] = route.weight if not isinstance(spec, dict) else spec
    _check_labelling(routing)


def _check_rule(where: str, group: GroupConfig) -> None:
    rules = {"labels": group.labels, "column": group.column, "predicate": group.predicate}
    named = [rule for rule, value in rules.items() if value not in (None, [])]
    _require(len(named) == 1, where, named or "{}", "by exactly one rule: at least one label, a column or a predicate")
    _require(
        (group.column is None) == (not group.values), f"{where}.values", group.values, "given with column, not else"
    )
    path = group.predicate
    _require(path is None or 0 < path.find(":") < len(path) - 1, f"{where}.predicate", path, "module:function")


def _check_labelling(routing: RoutingConfig) -> None:
    share = routing.labelled_fraction
    _require(0 <= share <= 1, "routing.labelled_fraction", share, "from 0 to 1")
    for name, rates in routing.label_noise.items():
        _one_of("routing.label_noise", name, tuple(routing.groups))
        for key, rate in (("false_positive", rates.false_positive), ("false_negative", rates.false_negative)):
            _require(0 <= rate <= 1, f"routing.label_noise.{name}.{key}", rate, "from 0 to 1")
    total = sum(rates.false_positive for rates in routing.label_noise.values())
    _require(total <= 1, "routing.label_noise", total, "at most 1 in the sum of all false_positive")
