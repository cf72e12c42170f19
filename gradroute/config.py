"""The typed configuration and every check that needs no model and no data.

A configuration comes from Hydra or from a run folder; either way it passes through `from_mapping`, so a key that
is not below, or a value of the wrong type, is refused wherever it came from.
"""

import hashlib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradroute.errors import UserError, unknown

STEPS = ("train", "certify", "ablate", "evaluate", "report")


@dataclass
class DatasetConfig:
    """Which images; `root` is a folder in torchvision's layout, or null for the default source."""

    name: str = "mnist"
    root: str | None = None


@dataclass
class ModelConfig:
    """Sizes of the autoencoder: encoder widths (the decoder has them in reverse) and encoding width."""

    name: str = "autoencoder"
    hidden: list[int] = field(default_factory=lambda: [2048, 512])
    encoding: int = 32


@dataclass
class RegionConfig:
    """Units (`"0:16"`, `"0:32:2"` or a list) on the last axis of a module's output."""

    site: str = "encoder"
    units: Any = None


@dataclass
class GroupConfig:
    """The labels whose data points form the group."""

    labels: list[int] = field(default_factory=list)


@dataclass
class RoutingConfig:
    """Groups, regions, and the gradient weight of each group in each region (1 where not named)."""

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    regions: dict[str, RegionConfig] = field(default_factory=dict)
    routes: dict[str, dict[str, float]] = field(default_factory=dict)
    unassigned: str = "error"


@dataclass
class AblationConfig:
    """What replaces a region's activations, and of which region (null: each in turn)."""

    kind: str = "zero"
    region: str | None = None


@dataclass
class LossesConfig:
    """Certificates' regions and the weights of the unrouted penalties (GR App. B)."""

    certificates: list[str] = field(default_factory=list)
    l1: dict[str, float] = field(default_factory=dict)
    correlation: float = 0.0


@dataclass
class PresetConfig:
    """Settings of the optimizer and the amount of data."""

    epochs: int = 14
    batch_size: int = 256
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    weight_decay: float = 0.0
    schedule: str = "constant"
    warmup_steps: int = 0
    train_limit: int | None = None
    test_limit: int | None = None
    precision: str = "auto"


@dataclass
class TrainerConfig(PresetConfig):
    """A preset as selected by `trainer=`, and the device."""

    preset: str = "fast"
    device: str = "auto"


@dataclass
class Config:
    """One experiment: a dataset, a model, routing, losses and a list of steps."""

    name: str = "experiment"
    seed: int = 0
    output_dir: str = "outputs"
    steps: list[str] = field(default_factory=lambda: list(STEPS))
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    presets: dict[str, PresetConfig] = field(default_factory=dict)


def from_mapping(mapping: DictConfig | Mapping[str, Any]) -> Config:
    """Type-check a composed configuration and run the cross-field checks.

    Raises: UserError for an unknown key, a wrong type, or a value outside its range.
    """
    schema = OmegaConf.structured(Config)
    source = mapping if isinstance(mapping, DictConfig) else OmegaConf.create(dict(mapping))
    try:
        preset = OmegaConf.select(source, "trainer.preset", default=None)
        blocks = OmegaConf.select(source, "presets", default=None)
        if blocks and preset not in blocks:
            raise unknown("trainer preset", preset, blocks)
        config = OmegaConf.to_object(OmegaConf.merge(schema, source))
    except OmegaConfBaseException as error:
        raise _readable(error, schema) from None
    if not isinstance(config, Config):
        raise UserError("the configuration is not a mapping of keys to values")
    config.presets = {}  # resolved into `trainer`; keeping both would let them disagree
    check(config)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, as saved in a run folder."""
    mapping = asdict(config)
    del mapping["presets"]
    return mapping


def config_hash(config: Config) -> str:
    """Eight hex digits that two runs share when they differ at most in seed, device and paths."""
    mapping = to_mapping(config)
    del mapping["seed"], mapping["output_dir"], mapping["dataset"]["root"], mapping["trainer"]["device"]
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:8]


def _readable(error: OmegaConfBaseException, schema: DictConfig) -> UserError:
    """One line for OmegaConf's report, with the nearest valid key where the key is unknown."""
    key = error.full_key or "?"
    parent, _, last = str(key).rpartition(".")
    node = OmegaConf.select(schema, parent) if parent else schema
    if isinstance(node, DictConfig) and OmegaConf.get_type(node) is not dict and last not in node:
        return unknown("key", key, [f"{parent}.{k}" if parent else str(k) for k in node])
    return UserError(f"{key}: {str(error).splitlines()[0]}")


def _require(holds: bool, key: str, value: object, right: str) -> None:
    if not holds:
        raise UserError(f"{key}={value}: must be {right}")


def check(config: Config) -> None:
    """Every range and cross-field check that needs neither model nor data; raises UserError."""
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
    _require(
        "unassigned" not in routing.groups,
        "routing.groups",
        "unassigned",
        "another name: this one is reserved",
    )
    owner: dict[int, str] = {}
    for name, group in routing.groups.items():
        _require(bool(group.labels), f"routing.groups.{name}.labels", group.labels, "at least one label")
        for label in group.labels:
            if label in owner:
                raise UserError(
                    f"routing.groups.{name}: label {label} is already in group '{owner[label]}'; groups must not overlap"
                )
            owner[label] = name
    for group_name, weights in routing.routes.items():
        _one_of("routing.routes (group)", group_name, tuple(routing.groups))
        for region, weight in weights.items():
            _one_of(f"routing.routes.{group_name} (region)", region, tuple(routing.regions))
            _require(math.isfinite(weight), f"routing.routes.{group_name}.{region}", weight, "a finite number")
