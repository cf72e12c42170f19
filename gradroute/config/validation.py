"""Range and cross-field checks of a configuration that need no components, model or data."""

import re
from collections.abc import Iterable, Mapping

from gradroute.config.components import STEPS, ablated_regions, step_names
from gradroute.config.limits import MANY, WEIGHT, one_of, require, require_number
from gradroute.config.routing_validation import check_name, check_routing
from gradroute.config.schema import Config, TrainerConfig
from gradroute.errors import UserError

DEVICE = r"auto|cpu|mps|(cuda|xpu)(:\d{1,3})?"
WEIGHTS = (0, WEIGHT)
# smallest and largest value of every number with a fixed range
RANGES: dict[str, tuple[float, float]] = {
    "seed": (0, 2**32 - 1),  # torch's CPU generator keeps 32 bits: larger seeds would repeat smaller ones
    "seeds": (1, 10_000),
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
    "checkpoint.replay": (0, 1000),
    "routing.labelled_fraction": (0, 1),
}
OPTIONAL = ("seeds", "trainer.train_limit", "trainer.test_limit")


def check_values(config: Config) -> None:
    """Raise UserError at the first value outside its range; this comes before any component is imported."""
    for key, (least, largest) in RANGES.items():
        part, _, name = key.rpartition(".")
        value = getattr(getattr(config, part) if part else config, name)
        if value is not None or key not in OPTIONAL:
            require_number(key, value, least, largest)
    last = config.seed + (config.seeds or 1) - 1
    largest_seed = RANGES["seed"][1]
    require(last <= largest_seed, "seeds", config.seeds, f"so small that the last seed is at most {largest_seed}")
    _check_names(config)
    _check_trainer(config.trainer)
    whole = type(config.stack) is int and 1 <= config.stack <= 10_000
    require(config.stack == "auto" or whole, "stack", config.stack, "auto, or a number of runs from 1 to 10000")
    one_of("checkpoint.keep", config.checkpoint.keep, ("weights", "none"))
    replay, noted = config.checkpoint.replay, config.ledger.enabled
    require(noted or not replay, "checkpoint.replay", replay, "0, or set ledger.enabled=true, whose windows it replays")


def check(config: Config) -> None:
    """Raise UserError at the first value that conflicts with another; convert weights to floats."""
    _check_steps(config)
    check_routing(config.routing)
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
            if regions[name].has_parameters:
                raise UserError(
                    f"losses.{key}: region '{name}' is parameters and has no activations; use one with a site"
                )


def _check_ablation(config: Config) -> None:
    regions, given = config.routing.regions, config.ablation.get("region")
    named = ablated_regions(config)
    require(given != [], "ablation.region", given, "null, a region, or a list of regions")
    for name in named:
        one_of("ablation.region", name, tuple(regions))
    require(len(set(named)) == len(named), "ablation.region", given, "each region once")


def _check_path(key: str, path: str | None) -> None:
    require(path is None or (path.strip() != "" and path.isprintable()), key, repr(path), "a folder's path")


def _check_names(config: Config) -> None:
    check_name("name", config.name)
    _check_path("output_dir", config.output_dir)
    _check_path("trained", config.trained)


def _check_steps(config: Config) -> None:
    """Require built-in steps in their order, and each step once; a user's step may be anywhere after `train`."""
    names = step_names(config)
    ours = [list(STEPS).index(name) for name in config.steps if isinstance(name, str)]
    right = f"in this order, each once: {list(STEPS)}"
    require(ours == sorted(set(ours)) and len(set(names)) == len(names), "steps", names, right)
    first = [name for name in names if name != "pretrain"][:1]
    require(first == ["train"], "steps", names, "a list that begins with 'train', or with 'pretrain' and 'train'")
    if "report" in names:
        require("evaluate" in names, "steps", names, "a list with 'evaluate' before 'report'")


def _check_trainer(trainer: TrainerConfig) -> None:
    one_of("trainer.optimizer", trainer.optimizer, ("adam", "adamw", "sgd"))
    require_number("trainer.momentum", trainer.momentum, 0, 0.9999)
    right = "0 unless trainer.optimizer=sgd: the others use betas"
    require(not trainer.momentum or trainer.optimizer == "sgd", "trainer.momentum", trainer.momentum, right)
    one_of("trainer.schedule", trainer.schedule, ("constant", "cosine"))
    one_of("trainer.precision", trainer.precision, ("auto", "float32", "tf32", "bfloat16"))
    one_of("trainer.batches", trainer.batches, ("mixed", "by_group"))
    for key in ("compile", "graph", "deterministic"):
        value = getattr(trainer, key)
        require(value == "auto" or type(value) is bool, f"trainer.{key}", value, "auto, true or false")
    fits = trainer.accumulate <= trainer.batch_size
    right = f"at most trainer.batch_size={trainer.batch_size}, the rows that are split into parts"
    require(fits, "trainer.accumulate", trainer.accumulate, right)
    used = trainer.schedule == "cosine" or trainer.end_rate == 0
    require(used, "trainer.end_rate", trainer.end_rate, "0 with trainer.schedule=constant, which does not decay")
    right = "auto, cpu, mps, cuda or cuda:N"
    require(re.fullmatch(DEVICE, trainer.device) is not None, "trainer.device", trainer.device, right)
    betas = trainer.betas
    require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "trainer.betas", betas, "two numbers from 0 to below 1")
