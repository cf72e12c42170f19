"""Every range and cross-field check of a configuration that needs neither model nor data."""

import re
from collections.abc import Iterable, Mapping

from gradroute.config.schema import STEPS, Config, GroupConfig, RegionConfig, RoutingConfig, TrainerConfig
from gradroute.errors import UserError, unknown
from gradroute.routing.routes import read_route

ABLATIONS = ("zero", "mean", "resample", "reinitialise", "remove")
WIDTH = 65536  # units of a layer
LAYERS = 64
MANY = 10**9  # updates, data points, labels
WEIGHT = 10**6  # of a loss; more would leave float32's range within a few layers
NAME = 64  # characters; a name becomes a part of file names
RESERVED = ("all", "default", "unassigned")  # names in the metrics and the ledger
DEVICE = r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?"
WEIGHTS = (0, WEIGHT)
# of every number with a fixed range: the least and the largest value
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**63 - 1),
    "seeds": (1, 10_000),
    "model.encoding": (1, WIDTH),
    "losses.correlation": WEIGHTS,
    "trainer.epochs": (1, 100_000),
    "trainer.batch_size": (2, 1_000_000),
    "trainer.accumulate": (1, 1_000_000),
    "trainer.lr": (1e-12, 10),
    "trainer.end_rate": (0, 1),
    "trainer.weight_decay": (0, 1000),
    "trainer.warmup_steps": (0, MANY),
    "trainer.train_limit": (2, MANY),
    "trainer.test_limit": (1, MANY),
    "ledger.window": (1, MANY),
    "ledger.every": (1, MANY),
    "checkpoint.minutes": (0, 100_000),
    "routing.labelled_fraction": (0, 1),
}
OPTIONAL = ("seeds", "trainer.train_limit", "trainer.test_limit")


def require(holds: bool, key: str, value: object, right: str) -> None:
    """Raise UserError unless it holds: what the key's value must be."""
    if not holds:
        raise UserError(f"{key}={value}: must be {right}")


def require_number(key: str, value: object, least: float, largest: float, kind: type = float) -> None:
    """Raise UserError if the value is no number, or outside of a range; with `kind=int`, no whole number."""
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    holds = number and least <= value <= largest  # type: ignore[operator]  # never true of nan
    require(holds, key, value, f"from {least} to {largest}")


def check(config: Config) -> None:
    """Raise UserError at the first value outside its range or against another; weights become floats."""
    for key, (least, largest) in RANGES.items():
        part, _, name = key.rpartition(".")
        value = getattr(getattr(config, part) if part else config, name)
        if value is not None or key not in OPTIONAL:
            require_number(key, value, least, largest)
    _check_names(config)
    _check_trainer(config.trainer)
    whole = type(config.stack) is int and 1 <= config.stack <= 10_000
    require(config.stack == "auto" or whole, "stack", config.stack, "auto, or a number of runs from 1 to 10000")
    one_of("checkpoint.keep", config.checkpoint.keep, ("weights", "none"))
    hidden = config.model.hidden
    require(1 <= len(hidden) <= LAYERS, "model.hidden", hidden, f"a list of 1 to {LAYERS} widths")
    for width in hidden:
        require_number("model.hidden", width, 1, WIDTH, int)
    _check_routing(config.routing)
    groups = len(config.routing.groups)
    right = (1, groups, groups + 1)  # one more if points are in no group, which the data tell
    require(config.model.decoders in right, "model.decoders", config.model.decoders, f"1, or {groups}, one a group")
    _check_losses(config)
    _check_ablation(config)


def _check_losses(config: Config) -> None:
    regions, losses = config.routing.regions, config.losses
    weights: dict[str, tuple[Mapping[str, object], Iterable[str]]] = {
        "losses.l1": (losses.l1, regions), "losses.groups": (losses.groups, config.routing.groups)
    }  # fmt: skip
    for key, (given, valid) in weights.items():
        for name, weight in given.items():
            one_of(key, name, tuple(valid))
            require_number(f"{key}.{name}", weight, *WEIGHTS)
    for region in losses.certificates:
        one_of("losses.certificates", region, tuple(regions))
    duplicated = len(set(losses.certificates)) < len(losses.certificates)
    require(not duplicated, "losses.certificates", losses.certificates, "each region once")
    for key, names in {"certificates": losses.certificates, "l1": losses.l1}.items():
        for name in names:
            if regions[name].parameters is not None:
                raise UserError(
                    f"losses.{key}: region '{name}' is parameters and has no activations; name one with a site"
                )


def _check_ablation(config: Config) -> None:
    regions, kind, given = config.routing.regions, config.ablation.kind, config.ablation.region
    one_of("ablation.kind", kind, ABLATIONS)
    named = given if isinstance(given, list) else list(regions) if given is None else [given]
    require(given != [], "ablation.region", given, "null, a region, or a list of regions")
    for name in named:
        one_of("ablation.region", name, tuple(regions))
        if regions[name].parameters is not None and kind not in ("zero", "reinitialise"):
            raise UserError(f"ablation.kind={kind}: region '{name}' is parameters and has no activations; use zero or "
                            "reinitialise")  # fmt: skip
    require(len(set(named)) == len(named), "ablation.region", given, "each region once")


def one_of(key: str, value: object, valid: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest ones, unless the value is valid."""
    if value not in valid:
        raise unknown(f"value of {key}:", value, valid)


def _check_name(key: str, name: object) -> None:
    """A name that can stand in file names, tables and plots."""
    holds = isinstance(name, str) and 1 <= len(name) <= NAME and all(c.isalnum() or c in "_-" for c in name)
    require(holds and name[:1] != "-", key, name, f"1 to {NAME} letters, digits, _ and -")  # type: ignore[index]


def _check_path(key: str, path: str | None) -> None:
    require(path is None or (path.strip() != "" and path.isprintable()), key, repr(path), "a folder's path")


def _check_names(config: Config) -> None:
    _check_name("name", config.name)
    _check_path("output_dir", config.output_dir)
    _check_path("trained", config.trained)
    _check_path("dataset.root", config.dataset.root)
    _check_path("dataset.metadata", config.dataset.metadata)
    for step in config.steps:
        one_of("steps", step, STEPS)
    positions = [STEPS.index(step) for step in config.steps]
    require(positions == sorted(set(positions)), "steps", config.steps, f"in this order, each once: {list(STEPS)}")
    require("train" in config.steps, "steps", config.steps, "a list with 'train' in it")
    if "report" in config.steps:
        require("evaluate" in config.steps, "steps", config.steps, "evaluated before the report")


def _check_trainer(trainer: TrainerConfig) -> None:
    one_of("trainer.optimizer", trainer.optimizer, ("adam", "adamw", "sgd"))
    require_number("trainer.momentum", trainer.momentum, 0, 0.9999)
    right = "0, or trainer.optimizer=sgd: the others have betas"
    require(not trainer.momentum or trainer.optimizer == "sgd", "trainer.momentum", trainer.momentum, right)
    one_of("trainer.schedule", trainer.schedule, ("constant", "cosine"))
    one_of("trainer.precision", trainer.precision, ("auto", "float32", "tf32", "bfloat16"))
    one_of("trainer.batches", trainer.batches, ("mixed", "by_group"))
    fits = trainer.accumulate <= trainer.batch_size
    right = f"at most trainer.batch_size={trainer.batch_size}, the rows that there are to take in parts"
    require(fits, "trainer.accumulate", trainer.accumulate, right)
    used = trainer.schedule == "cosine" or trainer.end_rate == 0
    require(used, "trainer.end_rate", trainer.end_rate, "0 with trainer.schedule=constant, which has no end")
    right = "auto, cpu, mps, cuda or cuda:N"
    require(re.fullmatch(DEVICE, trainer.device) is not None, "trainer.device", trainer.device, right)
    betas = trainer.betas
    require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "trainer.betas", betas, "two numbers from 0 to below 1")


def _check_routing(routing: RoutingConfig) -> None:
    one_of("routing.unassigned", routing.unassigned, ("error", "unrouted"))
    require(bool(routing.groups), "routing.groups", "{}", "at least one group")
    owner: dict[int, str] = {}
    for name, group in routing.groups.items():
        _check_name("routing.groups", name)
        reserved = name in RESERVED or re.fullmatch(r"(digit|class)_\d+", name)
        require(not reserved, "routing.groups", name, "another name: this is reserved")
        _check_rule(f"routing.groups.{name}", group)
        for label in group.labels:
            if label in owner:
                raise UserError(
                    f"routing.groups: label {label} is in '{owner[label]}' and '{name}'; groups must not overlap"
                )
            owner[label] = name
    if routing.unlabelled is not None:
        one_of("routing.unlabelled", routing.unlabelled, tuple(routing.groups))
    for name, region in routing.regions.items():
        _check_name("routing.regions", name)
        require(name != "all", "routing.regions", name, "another name: this is reserved")
        _check_region(f"routing.regions.{name}", region)
    for group_name, row in routing.routes.items():
        one_of("routing.routes (group)", group_name, tuple(routing.groups))
        require(isinstance(row, dict), f"routing.routes.{group_name}", row, "a mapping of regions to weights")
        for region_name, spec in row.items():
            where = f"routing.routes.{group_name}"
            one_of(f"{where} (region)", region_name, tuple(routing.regions))
            route = read_route(spec, f"{where}.{region_name}")
            row[region_name] = route.weight if not isinstance(spec, dict) else spec
    _check_labelling(routing)


def _check_region(where: str, region: RegionConfig) -> None:
    require(
        (region.site is None) != (region.parameters is None), where, region.site, "one with either site or parameters"
    )
    given = region.site if isinstance(region.site, list) else [region.site]
    right = "a module's name, a glob, or a list of them"
    named = bool(given) and all(isinstance(s, str) and s for s in given)
    require(region.site is None or named, f"{where}.site", region.site, right)
    alone = region.parameters is None or (region.units is None and region.output is None)
    require(alone, where, region.units, "without units and output: parameters have their own units")
    named = region.parameters is None or bool(region.parameters)
    require(named, f"{where}.parameters", region.parameters, "at least one parameter's name or glob")


def _check_rule(where: str, group: GroupConfig) -> None:
    rules = {"labels": group.labels, "column": group.column, "predicate": group.predicate, "words": group.words,
             "pattern": group.pattern, "rest": group.rest or None}  # fmt: skip
    named = [rule for rule, value in rules.items() if value not in (None, [])]
    require(len(named) == 1, where, named or "{}", f"by exactly one rule, not empty: {', '.join(rules)}")
    one_of(f"{where}.tokens", group.tokens, ("all", "words", "frequent"))
    require(group.tokens != "words" or bool(group.words), f"{where}.tokens", group.tokens, "given with words, not else")
    for label in group.labels:
        require_number(f"{where}.labels", label, 0, MANY, int)
    require(group.column != "", f"{where}.column", "''", "a column's name")
    require(
        (group.column is None) == (not group.values), f"{where}.values", group.values, "given with column, not else"
    )
    plain = all(isinstance(value, str | int | float) for value in group.values)
    require(plain, f"{where}.values", group.values, "a list of texts or numbers")
    if group.predicate is not None:
        module, _, function = group.predicate.partition(":")
        named_well = all(part.isidentifier() for part in [*module.split("."), function])
        require(named_well, f"{where}.predicate", group.predicate, "module:function")


def _check_labelling(routing: RoutingConfig) -> None:
    for name, rates in routing.label_noise.items():
        one_of("routing.label_noise", name, tuple(routing.groups))
        for key, rate in (("false_positive", rates.false_positive), ("false_negative", rates.false_negative)):
            require_number(f"routing.label_noise.{name}.{key}", rate, 0, 1)
    total = sum(rates.false_positive for rates in routing.label_noise.values())
    require(total <= 1, "routing.label_noise", total, "at most 1 in the sum of all false_positive")
