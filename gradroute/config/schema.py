"""The typed schema of a configuration; a key that is not below, or a value of another type, is refused."""

from dataclasses import dataclass, field
from typing import Any

from gradroute.config.image_schema import AugmentConfig, ResNetSizes
from gradroute.config.language_schema import (
    CompletionsConfig,
    HFModel,
    SteeringConfig,
    TextConfig,
    TransformerSizes,
    TuneConfig,
    UnlearnConfig,
)  # fmt: skip

STEPS = ("train", "certify", "ablate", "unlearn", "finetune", "relearn", "steer", "evaluate", "report")


@dataclass
class DatasetConfig:
    """Which images, or with `text` which documents.

    root: a folder, or null for the default source. format: how the folder is laid out, as `torchvision` does it, a
    `folder` of PNGs for each class, or `strips`. metadata: a folder with `train.csv` and
    `test.csv`, a header and one line per image in the data set's order.
    """

    name: str = "mnist"
    root: str | None = None
    format: str = "torchvision"
    metadata: str | None = None
    augment: AugmentConfig | None = None
    text: TextConfig | None = None


@dataclass
class ModelConfig:
    """Sizes of the autoencoder: encoder widths (the decoder has them in reverse), encoding width, decoders.

    `decoders` is 1, or the number of groups, each group's images then having their own. A `transformer` has none,
    and neither has `hf` nor `resnet`, which is a classifier.
    """

    name: str = "autoencoder"
    hidden: list[int] = field(default_factory=lambda: [2048, 512])
    encoding: int = 32
    decoders: int = 1
    transformer: TransformerSizes | None = None
    hf: HFModel | None = None
    resnet: ResNetSizes | None = None


@dataclass
class RegionConfig:
    """Units of modules' outputs, or parameters: as `gradroute.Region` with `site`, or `gradroute.ParameterRegion`."""

    site: Any = None
    units: Any = None
    axis: int | None = None
    output: int | None = None
    parameters: dict[str, Any] | None = None


@dataclass
class GroupConfig:
    """The rule for a group's data points: their labels, or a metadata column's values, or `module:function`.

    Of documents also `words` that are in them, or a regular expression `pattern`. rest: all points in no other group.
    tokens: which tokens of its documents are the group's: `all`, those of its `words`, or by how much more `frequent`
    they are there.
    """

    labels: list[int] = field(default_factory=list)
    column: str | None = None
    values: list[Any] = field(default_factory=list)
    predicate: str | None = None
    words: list[str] = field(default_factory=list)
    pattern: str | None = None
    rest: bool = False
    tokens: str = "all"


@dataclass
class NoiseConfig:
    """Shares of mistaken labels: of the points outside a group that get its label, and of its points that lose it."""

    false_positive: float = 0.0
    false_negative: float = 0.0


@dataclass
class RoutingConfig:
    """Groups, regions, and the route of each group in each region (weight 1 where not named).

    unlabelled: the group whose routes training points without a label take; null is weight 1 everywhere. Routes are
    typed by `check`: OmegaConf refuses a whole number in a nested mapping of floats.
    """

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    regions: dict[str, RegionConfig] = field(default_factory=dict)
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)
    unassigned: str = "error"
    unlabelled: str | None = None
    labelled_fraction: float = 1.0
    label_noise: dict[str, NoiseConfig] = field(default_factory=dict)


@dataclass
class AblationConfig:
    """What happens to a region, and to which: one, a list of them together, or null for each in turn."""

    kind: str = "zero"
    region: Any = None


@dataclass
class LossesConfig:
    """Certificates' regions and the weights of the losses (GR App. B): of groups' task losses, 1 where not named."""

    certificates: list[str] = field(default_factory=list)
    l1: dict[str, float] = field(default_factory=dict)
    correlation: float = 0.0
    groups: dict[str, float] = field(default_factory=dict)


@dataclass
class PresetConfig:
    """Settings of the optimizer and the amount of data; `tune_steps` and `unlearn_steps` are of a language model.

    optimizer: `adam`, with L2 in the gradient, `adamw`, both with `betas`, or `sgd` with `momentum`. end_rate: the
    share of `lr` that the cosine schedule ends at. accumulate: parts that a batch is taken in, one after another, for
    one update. compile: train the model by `torch.compile`; certificates, and what comes after it, are not compiled.
    """

    epochs: int = 1
    batch_size: int = 256
    accumulate: int = 1
    batches: str = "mixed"
    lr: float = 1e-3
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    optimizer: str = "adam"
    momentum: float = 0.0
    weight_decay: float = 0.0
    schedule: str = "constant"
    end_rate: float = 0.0
    warmup_steps: int = 0
    train_limit: int | None = None
    test_limit: int | None = None
    precision: str = "auto"
    compile: bool = False
    tune_steps: int | None = None
    unlearn_steps: int | None = None


@dataclass
class TrainerConfig(PresetConfig):
    """A preset as selected by `trainer=`, and the device."""

    preset: str = "fast"
    device: str = "auto"


@dataclass
class SplitConfig:
    """A shorthand for routing: each set of labels gets a region of its own at one site; replaces what it says.

    groups: sets of labels. units: how many units each gets; equal shares if null. site: where; `width` is its number of
    units, known for `encoder`. outside: the gradient weight outside of a group's own region. l1: the L1 weight of every
    region; that of the configuration's first region if null.
    """

    groups: list[list[int]] | None = None
    units: list[int] | None = None
    site: str = "encoder"
    width: int | None = None
    outside: float = 0.0
    l1: float | None = None


@dataclass
class LedgerConfig:
    """The record of who trained what: updates to a row, and how often norms are measured."""

    enabled: bool = True
    window: int = 100
    every: int = 10


@dataclass
class CheckpointConfig:
    """What a run goes on from: minutes between checkpoints while it trains, and what a finished run keeps.

    keep: `weights`, or `none`.
    """

    minutes: float = 5.0
    keep: str = "weights"


@dataclass
class Config:
    """One experiment: a dataset, a model, routing, losses and a list of steps.

    `seeds` of it are as many runs, from `seed` on; at most `stack` runs are trained together as one batched program.
    `trained` is a finished run whose training is taken over, or `auto`: one in `output_dir` that fits, if there is.
    """

    name: str = "experiment"
    seed: int = 0
    seeds: int | None = None
    stack: Any = "auto"
    trained: str | None = None
    output_dir: str = "outputs"
    steps: list[str] = field(default_factory=lambda: list(STEPS))
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    ablation: AblationConfig = field(default_factory=AblationConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    unlearn: UnlearnConfig | None = None
    finetune: TuneConfig | None = None
    relearn: TuneConfig | None = None
    steering: SteeringConfig | None = None
    completions: CompletionsConfig | None = None
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    presets: dict[str, PresetConfig] = field(default_factory=dict)
