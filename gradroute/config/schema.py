"""The typed schema of a configuration. Unknown keys and values of another type are refused.

A *component* is a mapping with `_target_`, the import path of a class or function, and its arguments (Hydra's
convention). The arguments are checked against its signature; see `gradroute.config.components`.
"""

from dataclasses import dataclass, field
from typing import Any

from gradroute.config.auto import AutoConfig


@dataclass
class RegionConfig:
    """A region: a `gradroute.Region` if `site` is given, a `gradroute.ParameterRegion` if `parameters` or `adapter` is.

    part, layers: in place of `site`, a part of these layers of a language model, of all layers if null; see
    `gradroute.models.layer_parts`.
    outside: with `parameters`, regions with a `part`; parameters of their units are left out.
    adapter: the name of a LoRA adapter of a language model, made by `peft`; the model's own weights are then frozen.
    of: the layers it is added to, by the ends of their names; null is all linear layers but the output.
    rank, alpha: its rank, and the numerator of its scale alpha / rank; null is 8, and the rank.
    start: a folder of an adapter to start from, which states `of`, `rank` and `alpha`.
    module: a module beside the MLPs of a transformer, by its name in `model.modules`: its outputs and its parameters.
    """

    site: Any = None
    part: str | None = None
    layers: list[int] | None = None
    units: Any = None
    axis: int | None = None
    output: Any = None
    parameters: dict[str, Any] | None = None
    outside: list[str] | None = None
    adapter: str | None = None
    of: list[str] | None = None
    rank: int | None = None
    alpha: float | None = None
    start: str | None = None
    module: str | None = None

    @property
    def has_parameters(self) -> bool:
        """Whether it consists of parameters and has no activations."""
        return self.parameters is not None or self.adapter is not None


@dataclass
class GroupConfig:
    """The rule that selects a group's data points. Give exactly one of the following.

    labels: the points with one of these labels.
    column, values: the points whose metadata column has one of the values.
    predicate: `module:function`, called with the points and their labels; returns bools.
    words, pattern: documents with one of the words, or in which a regular expression is found.
    rest: all points in no other group.

    tokens: which tokens of its documents belong to the group: `all`, those of its `words`, or `frequent`, in
        proportion to how much more frequent a token is in the group than elsewhere (GR App. C).
    labelled: share of its training points that carry the group's label; null is `routing.labelled_fraction`.
    """

    labels: list[int] = field(default_factory=list)
    column: str | None = None
    values: list[Any] = field(default_factory=list)
    predicate: str | None = None
    words: list[str] = field(default_factory=list)
    pattern: str | None = None
    rest: bool = False
    tokens: str = "all"
    labelled: float | None = None


@dataclass
class NoiseConfig:
    """Rates of label errors: points outside the group that get its label, and points of the group that lose it."""

    false_positive: float = 0.0
    false_negative: float = 0.0


@dataclass
class RoutingConfig:
    """Groups, regions, and the gradient weight of each group in each region (1 where not named).

    unassigned: what to do with points in no group: `error`, or `unrouted` to train on them with every weight 1.
    unlabelled: the group whose routes unlabelled points take; null gives them weight 1 everywhere.
    labelled_fraction: share of each group's training points that carry the group's label.
    compensate: `labels` replaces each weight below 1 by -(1 - f) / f, where f is the share of the group's points that
        are labelled, so that over labelled and unlabelled points a routed token's mean weight is 0.
    compensate_limit: the lowest such weight is minus this; null is 10.
    left_out: groups whose training points are left out, labelled or not; the number of updates stays the same.
    auto: the regions and routes are to be found by a pilot before the run.
    """

    groups: dict[str, GroupConfig] = field(default_factory=dict)
    regions: dict[str, RegionConfig] = field(default_factory=dict)
    # Any: OmegaConf refuses a whole number in a nested mapping of floats; `validation` converts the weights
    routes: dict[str, dict[str, Any]] = field(default_factory=dict)
    unassigned: str = "error"
    unlabelled: str | None = None
    labelled_fraction: float = 1.0
    label_noise: dict[str, NoiseConfig] = field(default_factory=dict)
    compensate: str | None = None
    compensate_limit: float | None = None
    left_out: list[str] = field(default_factory=list)
    auto: AutoConfig | None = None


@dataclass
class LossesConfig:
    """Certificates, and the weights of the loss terms (GR App. B).

    certificates: regions that get a certificate. l1: weight of the L1 penalty by region. correlation: weight of the
    correlation penalty. groups: weight of each group's task loss, 1 where not named. error: a component that replaces
    the error that the task minimises. penalties: more penalties, components with a `weight`.
    """

    certificates: list[str] = field(default_factory=list)
    l1: dict[str, float] = field(default_factory=dict)
    correlation: float = 0.0
    groups: dict[str, float] = field(default_factory=dict)
    error: dict[str, Any] | None = None
    penalties: list[Any] = field(default_factory=list)


@dataclass
class PresetConfig:
    """Settings of the optimizer and the amount of data.

    accumulate: split each batch into this many parts and accumulate their gradients for one update.
    batches: `mixed`, or `by_group` for batches of one group each.
    optimizer: `adam` (L2 in the gradient), `adamw`, both with `betas`, or `sgd` with `momentum`.
    end_rate: share of `lr` at which the cosine schedule ends.
    train_limit, test_limit: use only this many data points, the first ones.
    compile: use `torch.compile` in `train`: the model, on a GPU losses and updates; `auto` goes on where that fails.
    tune_steps, unlearn_steps: updates of the steps `finetune` and `relearn`, and of `unlearn`.
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
    compile: Any = False
    tune_steps: int | None = None
    unlearn_steps: int | None = None


@dataclass
class TrainerConfig(PresetConfig):
    """The preset that `trainer=` selects, the device, CUDA graphs, and whether a rerun on a GPU agrees to the bit."""

    preset: str = "fast"
    device: str = "auto"
    graph: Any = "auto"
    deterministic: Any = "auto"


@dataclass
class SplitConfig:
    """A shorthand for `routing`: each set of labels gets a region of its own at one site.

    groups: sets of labels. units: how many units each set gets; null is equal shares. site: the module. width: its
    number of units, known for the encoding of built-in models. outside: the gradient weight outside of a group's own
    region. l1: the L1 weight of every region; null takes that of the experiment's first region.
    """

    groups: list[list[int]] | None = None
    units: list[int] | None = None
    site: str = "encoder"
    width: int | None = None
    outside: float = 0.0
    l1: float | None = None


@dataclass
class LedgerConfig:
    """The ledger: updates per row (`window`), and updates between two measurements of norms (`every`)."""

    enabled: bool = True
    window: int = 100
    every: int = 10


@dataclass
class CheckpointConfig:
    """Checkpoints: minutes between them while a run trains (0: after every update), and what a finished run keeps.

    keep: `weights`, or `none`. replay: checkpoints that are kept for `gradroute-verify --replay`, spread evenly.
    """

    minutes: float = 5.0
    keep: str = "weights"
    replay: int = 0


@dataclass
class Config:
    """One experiment: a data set, a model, a task, routes, losses and a list of steps.

    seeds: make this many runs, with seeds from `seed` on. stack: how many runs to train at once as one batched program.
    trained: a finished run whose training is reused, or `auto` for any in `output_dir` that fits.
    environment: in place of a data set, where a model makes its own data. audits: values of `audit`, by preset.
    steps: names, or components. A named step takes its arguments from the section of that step, such as `finetune`.
    """

    name: str = "experiment"
    seed: int = 0
    seeds: int | None = None
    stack: Any = "auto"
    trained: str | None = None
    output_dir: str = "outputs"
    steps: list[Any] = field(default_factory=lambda: ["train", "evaluate", "report"])
    task: dict[str, Any] = field(default_factory=dict)
    dataset: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] | None = None
    model: dict[str, Any] = field(default_factory=dict)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    losses: LossesConfig = field(default_factory=LossesConfig)
    ablation: dict[str, Any] = field(default_factory=dict)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    privacy: dict[str, Any] | None = None
    pretrain: dict[str, Any] | None = None
    unlearn: dict[str, Any] | None = None
    finetune: dict[str, Any] | None = None
    relearn: dict[str, Any] | None = None
    audit: dict[str, Any] | None = None
    steering: dict[str, Any] | None = None
    extract: dict[str, Any] | None = None
    profiles: dict[str, Any] | None = None
    completions: dict[str, Any] | None = None
    measures: list[Any] = field(default_factory=list)
    plots: list[Any] = field(default_factory=list)
    tracker: dict[str, Any] | None = None
    ledger: LedgerConfig = field(default_factory=LedgerConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    split: SplitConfig = field(default_factory=SplitConfig)
    presets: dict[str, PresetConfig] = field(default_factory=dict)
    audits: dict[str, dict[str, Any]] = field(default_factory=dict)
