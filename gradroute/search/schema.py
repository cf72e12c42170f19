"""The typed schema of a search, and its checks; unknown keys are refused."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradroute.config.auto import AutoConfig, check_auto
from gradroute.errors import UserError, unknown

METHODS = ("tpe", "random", "pilot", "learned")
SAMPLERS = ("tpe", "gp")
GOALS = ("lower", "higher")


@dataclass
class ObjectiveConfig:
    """A number in a run's `summary.json` and its `goal`, `lower` or `higher`; group `mean` is the mean over groups."""

    metric: str = "mse"
    head: str = "decoder"
    region: str = "all"
    group: str = "mean"
    goal: str = "lower"


@dataclass
class PruningConfig:
    """When to stop a trial during training; see `gradroute.search.objectives.hopeless`.

    rule: `median`, or `halving`: Optuna's successive halving by the first objective, at those evaluations at which its
        rank correlation with the end was measured and is high enough; see `gradroute.search.fidelity`.
    after: number of earlier trials that must have got as far. margin: share by which the trial must be worse than the
        median. correlation: Spearman's correlation from which on halving may end a trial.
    """

    enabled: bool = True
    after: int = 8
    rule: str = "median"
    margin: float = 0.0
    correlation: float = 0.5


@dataclass
class FinalConfig:
    """Which trials are repeated with fresh seeds before anything is claimed, and how.

    best: number of trials from the search's front, and from the random baseline's. seeds: number of seeds, from
    `first_seed` on. overrides: those of the final runs. control: repeat the hand-made mask without routes, too.
    """

    best: int = 2
    control: bool = False
    seeds: int = 3
    first_seed: int = 100
    overrides: list[str] = field(default_factory=lambda: ["trainer=fast"])


@dataclass
class GuessConfig:
    """A cheap guess at the regions from one unrouted run, and placebos: regions of the same sizes with random units.

    overrides: those of the unrouted run. by: how a group's use of a unit is measured, `activation` or `gradient`.
    placebos: their number.
    """

    overrides: list[str] = field(default_factory=list)
    by: str = "activation"
    placebos: int = 2


@dataclass
class PilotConfig(AutoConfig):
    """The settings of a pilot that a search makes."""

    key: ClassVar[str] = "search.pilot"


@dataclass
class LearnedConfig:
    """How `method=learned` learns masks; see `gradroute.search.lookahead`.

    sites: modules of one width, whose units are divided alike; empty for those of the experiment's own regions. share:
    of a run's updates that it costs. steps: updates that are looked ahead. rate: their learning rate. mask_rate: that
    of the masks. lowest: gradient weight, from -1 to 0, that the masks can have at least. points: data points of each
    group.
    """

    sites: list[str] = field(default_factory=list)
    share: float = 1.0
    steps: int = 1
    rate: float = 0.1
    mask_rate: float = 0.1
    lowest: float = 0.0
    points: int = 4096


@dataclass
class SearchConfig:
    """A search for a mask. Methods share its folder, and their masks its finals.

    method: `tpe` and `random` are studies of Optuna over a declared space of configurations; `pilot` and `learned` find
    a mask without trials. budget: updates that each method may make in trials, pilots and lookahead; null is no limit
    but the numbers of trials. sampler: of `method=tpe`, `tpe` or `gp`, a Gaussian process. start:
    values of the space, by parameter, with which `tpe` begins, such as those of the hand-made mask.
    space: dimensions by key, or by any name if `choices` set several keys; see `gradroute.search.space`. objectives: by
    name; several give a Pareto front; the default is `gradroute.search.objectives.default_objectives`. overrides: those
    of every trial. random: number of trials of the random baseline, in a study of its own. workers: processes on this
    machine; the same command on another machine adds one.
    """

    name: str = "search"
    method: str = "tpe"
    budget: int | None = None
    sampler: str = "tpe"
    learned: LearnedConfig = field(default_factory=LearnedConfig)
    start: dict[str, Any] = field(default_factory=dict)
    pilot: PilotConfig = field(default_factory=PilotConfig)
    space: dict[str, Any] = field(default_factory=dict)
    objectives: dict[str, ObjectiveConfig] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    trials: int = 40
    random: int = 0
    seed: int = 0
    workers: int = 1
    pruning: PruningConfig = field(default_factory=PruningConfig)
    final: FinalConfig = field(default_factory=FinalConfig)
    guess: GuessConfig | None = None


def search_from(source: Any) -> SearchConfig:
    """Build a search from its file and overrides. Raises: UserError for unknown, mistyped or out-of-range values."""
    try:
        search = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(SearchConfig), source))
    except OmegaConfBaseException as error:
        raise UserError(f"search.{error.full_key}: {str(error).splitlines()[0]}") from None
    assert isinstance(search, SearchConfig)
    _check(search)
    return search


def _check(search: SearchConfig) -> None:
    final, pruning = search.final, search.pruning
    if search.method not in METHODS:
        raise unknown("value of method:", search.method, METHODS)
    learned = search.learned
    for key, value, low, high in (("share", learned.share, 0, 10), ("rate", learned.rate, 0, 100),
                                  ("mask_rate", learned.mask_rate, 0, 100)):  # fmt: skip
        if not low < value <= high:
            raise UserError(f"search.learned.{key}={value}: must be above {low} and at most {high}")
    if not -1 <= learned.lowest <= 0:
        raise UserError(f"search.learned.lowest={learned.lowest}: must be from -1 to 0")
    if not 1 <= learned.steps <= 20:
        raise UserError(f"search.learned.steps={learned.steps}: must be from 1 to 20")
    if search.sampler not in SAMPLERS:
        raise unknown("value of search.sampler:", search.sampler, SAMPLERS)
    check_auto(search.pilot)
    least = {
        "trials": (search.trials, 1), "random": (search.random, 0), "workers": (search.workers, 1),
        "pruning.after": (pruning.after, 2), "final.best": (final.best, 0), "final.seeds": (final.seeds, 2),
        "final.first_seed": (final.first_seed, 0), "seed": (search.seed, 0),
        "budget": (1 if search.budget is None else search.budget, 1),
    }  # fmt: skip
    for key, (value, lowest) in least.items():
        if value < lowest:
            raise UserError(f"search.{key}={value}: must be {lowest} or more")
    if pruning.rule not in ("median", "halving"):
        raise unknown("value of search.pruning.rule:", pruning.rule, ("median", "halving"))
    if not 0 < pruning.correlation <= 1:
        raise UserError(f"search.pruning.correlation={pruning.correlation}: must be above 0 and at most 1")
    if not 0 <= pruning.margin < 1:
        raise UserError(f"search.pruning.margin={pruning.margin}: must be at least 0 and below 1")
    if not search.name.replace("_", "").isalnum():
        raise UserError(f"search.name={search.name}: must have only letters, digits and _")
    if not search.space:
        raise UserError("search.space: is empty; give one dimension or more")
    for name, objective in search.objectives.items():
        if objective.goal not in GOALS:
            raise unknown(f"goal of search.objectives.{name}:", objective.goal, GOALS)
    if search.guess and search.guess.by not in ("activation", "gradient"):
        raise unknown("search.guess.by", search.guess.by, ("activation", "gradient"))
