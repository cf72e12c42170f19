"""The base class of a task: the data, groups, model, routes and ablations of a run, and its measurements."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from gradroute.config.components import ablated_regions, step_names
from gradroute.config.doors import TARGET
from gradroute.config.limits import one_of, require
from gradroute.config.schema import Config, TrainerConfig
from gradroute.config.targets import build, locate
from gradroute.errors import UserError
from gradroute.routing import ParameterRouter, Router, Site
from gradroute.routing.ablation import Ablation, together
from gradroute.tasks.ablations import AblationMethod
from gradroute.tasks.known import Routed
from gradroute.tasks.own_measures import units_of
from gradroute.tasks.parts import Parts
from gradroute.tasks.probe import Measurement, Probe
from gradroute.training.devices import settle_precision
from gradroute.training.objectives import Batch, Objective, Term
from gradroute.training.penalties import penalties_of
from gradroute.training.training import Stateful
from gradroute.training.weights import own_tensors


class Task(Routed, ABC):
    """Everything that a run needs, built and checked. A task trains nothing and writes nothing.

    A subclass reads the data, builds the model and defines the measurements. Its constructor takes the configuration,
    the `data` of another run to reuse, and the folder `run` if the run has already begun. Further parameters are the
    keys of `task:` in the configuration.

    Attributes:
        kind: name of the task in a run's files.
        plots: import paths of the functions that draw the task's plots.
        names: names of the groups. sha256: checksum of the data. points: number of data points to train on.
        routed: group numbers used in training, `(points,)` or one per token; -1 for no group. If a batch makes its own
            data, those that can occur.
        read: the data set as it was read, for another run; `data` lacks the groups in `routing.left_out`.
        made: modules that steps after the training have made, by name, in order.
    """

    kind: ClassVar[str]
    plots: ClassVar[tuple[str, ...]] = ()
    own_units: ClassVar[Mapping[str, str]] = {}  # of metrics that only this task has
    config: Config
    device: torch.device
    data: Any
    sha256: str
    points: int
    parts: Parts
    curve_points: ClassVar[int] = 6  # test evaluations during training; more would cost over 3 % of a short run
    followed: ClassVar[tuple[str, ...]] = ()  # heads of the terms that the progress shows; empty for all but penalties
    read: Any

    def __init__(self, config: Config, data: Any = None, run: Path | None = None) -> None:
        """Raises: UserError for every mistake in the configuration or the data."""
        if config.routing.auto is not None and config.routing.auto.found is None:
            raise UserError("routing.auto: its regions are not found yet; gradroute-run and gradroute.run find them")
        self.config, self.device = config, settle_precision(config)
        self.made: dict[str, nn.Module] = {}

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that do not fit this kind of task, before any data are read."""
        model = locate(config.model[TARGET], "model")
        made_for = getattr(model, "task", cls.kind)
        if made_for != cls.kind:
            right = f"give task={made_for}, or another model="
            raise UserError(f"model: {model.__name__} is for {made_for}, and task= is {cls.kind}; {right}")
        method, regions = locate(config.ablation[TARGET], "ablation"), config.routing.regions
        seen = [name for name, region in regions.items() if not region.has_parameters]
        for penalty in penalties_of(config.losses):
            one_of("losses.penalties (region)", penalty.region, ("all", *seen))
        for name in ablated_regions(config):
            if regions[name].adapter is not None:
                require(method.of_adapters, "ablation", method.name, f"remove or zero: '{name}' is an adapter")
            elif regions[name].has_parameters and not method.of_parameters:
                fault = f"region '{name}' consists of parameters and has no activations"
                raise UserError(f"ablation={method.name}: {fault}; use zero or reinitialise")

    @classmethod
    def search_objectives(cls, config: Config) -> dict[str, dict[str, str]]:
        """Return the default objectives of a search: the fields of each, by name. Raises: UserError."""
        raise UserError("search.objectives: is empty, and this task has no default; give at least one objective")

    @classmethod
    def when_out_of_memory(cls, config: Config, stacked: int) -> str:
        """Return advice for a run that is out of memory, besides lowering the batch size."""
        return f"lower stack (now {stacked})" if stacked > 1 else "choose a smaller model"

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.parts.model

    @property
    def router(self) -> Router:
        """The router of regions of activations."""
        return self.parts.router

    @property
    def parameter_router(self) -> ParameterRouter | None:
        """The router of regions of parameters; None if there are none."""
        return self.parts.parameter_router if self.parts.parameter_router.regions else None

    def router_of(self, region: str) -> Router | ParameterRouter:
        """Return the router that contains a region."""
        return self.router if region in self.router.regions else self.parts.parameter_router

    def fitted(self, trainer: TrainerConfig, points: int) -> TrainerConfig:
        """Return the settings of a training on `points` data points, adapted to the memory."""
        return trainer

    def at_step(self, step: int) -> None:
        """Set the routes to their weights at an update, counted from 0."""
        self.router.at_step(step)
        self.parts.parameter_router.at_step(step)

    @abstractmethod
    def objective(self) -> Objective:
        """Return the training loss."""

    @abstractmethod
    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return the objective's arguments for the data points with these row numbers, `(batch,)`."""

    def group_index(self, batch: Batch) -> torch.Tensor:
        """Return the group numbers of a batch, which `batch` returned; by default they are the last."""
        return batch[-1]

    @property
    def memberships(self) -> int:
        """The number of group numbers in all batches of the training."""
        return self.config.trainer.epochs * self.routed.numel()

    @property
    def source(self) -> Stateful | None:
        """What makes the batches, if its state changes with them and belongs in a checkpoint."""
        return None

    def after_epoch(self, epoch: int, step: int, means: dict[Term, float]) -> dict[Term, float]:
        """Return the means of an epoch's terms as they are recorded; called before the epoch's evaluation."""
        return means

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Return every trained module, by its prefix in saved weights."""

    def more(self) -> list[str]:
        """Return the names of the modules that steps after the training have made so far, in order."""
        return list(self.made)

    @abstractmethod
    def make(self, name: str) -> nn.Module:
        """Make one of these modules, in its state before its own training."""

    def expected(self) -> list[str]:
        """Return the names of these modules in a finished run."""
        return []

    def probes(self) -> Iterator[Probe]:
        """Yield what `certify` trains on the frozen model."""
        yield from ()

    @abstractmethod
    def example(self) -> torch.Tensor:
        """Return a few data points to try ablations on."""

    @abstractmethod
    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Return activations of the training data at some sites, by site name."""

    @abstractmethod
    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the measurements on the test data that every evaluation makes."""

    def measure_once(self) -> Iterator[Measurement]:
        """Yield the measurements that only the final evaluation makes."""
        yield from ()

    def validate(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the measurements on data to choose by, which are neither trained nor tested on."""
        yield from ()

    @abstractmethod
    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the arrays and the names that the plots need."""

    def texts(self) -> dict[str, str]:
        """Return the files that this task adds to a finished run: content by file name."""
        return {}

    def kept(self) -> dict[str, str]:
        """Return the files that are needed to load the run, written before its training: content by file name."""
        return {}

    @property
    def found(self) -> dict[str, Any]:
        """Values that the run supplies to components that ask for them, such as `shape` and `classes`."""
        return {}

    def units(self) -> dict[str, str]:
        """Return the units of the metrics that the task or the configuration adds, by metric."""
        return units_of(self.config, self.found) | dict(self.own_units)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all trained weights by name, on the CPU."""
        named = {
            f"{prefix}.{k}": v for prefix, module in self.modules().items() for k, v in own_tensors(module).items()
        }
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @property
    def ablation(self) -> AblationMethod:
        """The configured ablation method."""
        method: AblationMethod = build({k: v for k, v in self.config.ablation.items() if k != "region"}, "ablation")
        return method

    def ablations(self) -> list[Ablation]:
        """Return the configured ablations: of one region, of several together, or of each in turn."""
        method = self.ablation
        found = [method.of(name, self) for name in ablated_regions(self.config)]
        return found if self.config.ablation["region"] is None else [together(found)]

    def try_ablations(self) -> None:
        """Raise UserError for an ablation that fails, before the training rather than after it."""
        if "ablate" in step_names(self.config) and self.ablation.changes_model:
            for tried in self.ablations():
                with tried.applied(self.model):
                    pass


def create(config: Config, data: Any = None, run: Path | None = None) -> Task:
    """Build the task of a configuration.

    Args:
        data: `Task.data` of another run, to reuse instead of reading the data set.
        run: the run's own folder, if it has begun. The structure of a Hugging Face model is read from it.

    Raises: UserError for every mistake in the configuration or the data.
    """
    made: Task = build(config.task, "task", config=config, data=data, run=run)
    return made
