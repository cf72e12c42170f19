"""The typed schema of a configuration; a key that is not below, or a value of another type, is refused."""

from dataclasses import dataclass, field
from typing import Any

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
    """Groups, regions, and the gradient weight of each group in each region (1 where not named).

    Weights are typed by `check`: OmegaConf refuses a whole number in a nested mapping of floats.
    """

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    regions: dict[str, RegionConfig] = field(default_factory=dict)
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)
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
