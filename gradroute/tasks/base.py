"""A task: data, groups, model, routes and ablations of a checked configuration, and what is measured of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from gradroute.config.components import ablated_regions, step_names
from gradroute.config.doors import TARGET
from gradroute.config.limits import one_of
from gradroute.config.schema import Config, TrainerConfig
from gradroute.config.targets import build, locate
from gradroute.errors import UserError
from gradroute.routing import ParameterRouter, Router, Site
from gradroute.routing.ablation import Ablation, together
from gradroute.tasks.ablations import AblationMethod
from gradroute.tasks.evaluation import Head
from gradroute.tasks.own_measures import units_of
from gradroute.tasks.parts import Parts
from gradroute.training.devices import pick_device, pick_precision
from gradroute.training.objectives import Batch, Objective
from gradroute.training.penalties import penalties_of
from gradroute.training.weights import own_tensors

Measurement = tuple[str, Head, str, float]  # group or label, head, metric, value


def settle_precision(config: Config) -> torch.device:
    """The device to train on; `auto` in the configuration's precision becomes its name. Raises: UserError."""
    device = pick_device(config.trainer.device)
    config.trainer.precision = pick_precision(config.trainer.precision, device)
    return device


@dataclass(frozen=True)
class Probe:
    """Something to train beside, or after, the model: what, and on what data.

    batch: takes row numbers on the device, `(batch,)`, and returns what the objective takes. points, trainer: the
    task's and the configuration's if None.
    """

    title: str
    objective: Objective
    batch: Callable[[torch.Tensor], Batch]
    points: int | None = None
    trainer: TrainerConfig | None = None


class Task(ABC):
    """Everything a run needs, built and checked; nothing is written and nothing is trained.

    A subclass reads its data, builds its model and says what is measured. It is called with the configuration, another
    run's `data` if they are at hand, and the folder of the very `run` if that has begun; further parameters are the
    arguments of `task:` in the configuration.

    Attributes:
        kind: what the task is called in a run's files.
        plots: import paths of the functions that draw its plots.
        names: the groups. sha256: of the data. points: how many there are to train on.
        routed: group numbers as training sees them, `(points,)` or of every token, -1 for none.
        made: modules that steps after the training have made, by name, in order.
    """

    kind: ClassVar[str]
    plots: ClassVar[tuple[str, ...]] = ()
    config: Config
    device: torch.device
    data: Any
    names: list[str]
    sha256: str
    points: int
    routed: torch.Tensor
    parts: Parts

    def __init__(self, config: Config, data: Any = None, run: Path | None = None) -> None:
        """Raises: UserError for every mistake in the configuration or the data."""
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
        for penalty in penalties_of(config.losses):
            seen = [name for name, region in regions.items() if region.parameters is None]
            one_of("losses.penalties (region)", penalty.region, ("all", *seen))
        for name in ablated_regions(config):
            if regions[name].parameters is not None and not method.of_parameters:
                fault = f"region '{name}' is parameters and has no activations"
                raise UserError(f"ablation={method.name}: {fault}; use zero or reinitialise")

    @classmethod
    def search_objectives(cls, config: Config) -> dict[str, dict[str, str]]:
        """What a search looks for if it does not say: by name, the fields of an objective. Raises: UserError."""
        raise UserError("search.objectives: is empty, and this task has none of its own; say what is looked for")

    @classmethod
    def when_out_of_memory(cls, config: Config, stacked: int) -> str:
        """What to do beside lowering the batch size."""
        return f"lower stack (now {stacked})" if stacked > 1 else "choose a smaller model"

    @property
    def model(self) -> nn.Module:
        """The model that is trained."""
        return self.parts.model

    @property
    def router(self) -> Router:
        """The routes of its activations."""
        return self.parts.router

    @property
    def parameter_router(self) -> ParameterRouter | None:
        """The router of parameters, if there are regions of them."""
        return self.parts.parameter_router if self.parts.parameter_router.regions else None

    def router_of(self, region: str) -> Router | ParameterRouter:
        """The router that has a region."""
        return self.router if region in self.router.regions else self.parts.parameter_router

    def at_step(self, step: int) -> None:
        """Set the routes to what they are at an update, from 0."""
        self.router.at_step(step)
        self.parts.parameter_router.at_step(step)

    @abstractmethod
    def objective(self) -> Objective:
        """The training loss."""

    @abstractmethod
    def batch(self, chosen: torch.Tensor) -> Batch:
        """What the objective takes, of the data points with these row numbers."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """Everything that was trained, by its prefix in saved weights."""

    def more(self) -> list[str]:
        """Names of the modules that steps after the training have made so far, in order."""
        return list(self.made)

    @abstractmethod
    def make(self, name: str) -> nn.Module:
        """Make one of them again, untrained."""

    def expected(self) -> list[str]:
        """Names of those that a finished run has."""
        return []

    def probes(self) -> Iterator[Probe]:
        """What `certify` trains on the frozen model."""
        yield from ()

    @abstractmethod
    def example(self) -> torch.Tensor:
        """A few data points to try ablations on."""

    @abstractmethod
    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Activations of the training data at some sites, by name."""

    @abstractmethod
    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """What is measured on the test data, at every evaluation."""

    def measure_once(self) -> Iterator[Measurement]:
        """What is measured beside it at the end."""
        yield from ()

    @abstractmethod
    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Arrays and names that the plots draw from."""

    def texts(self) -> dict[str, str]:
        """Files that a run leaves beside what every run does, by name."""
        return {}

    def kept(self) -> dict[str, str]:
        """Files that the run is read back from, by name, which it has from the beginning."""
        return {}

    @property
    def found(self) -> dict[str, Any]:
        """What the run found out and a component may ask for, such as `shape` and `classes`."""
        return {}

    def units(self) -> dict[str, str]:
        """The units of the metrics that the configuration adds, by name."""
        return units_of(self.config, self.found)

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of everything that was trained, by name, on the CPU."""
        named = {
            f"{prefix}.{k}": v for prefix, module in self.modules().items() for k, v in own_tensors(module).items()
        }
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    @property
    def ablation(self) -> AblationMethod:
        """The configured kind of ablation."""
        method: AblationMethod = build({k: v for k, v in self.config.ablation.items() if k != "region"}, "ablation")
        return method

    def ablations(self) -> list[Ablation]:
        """The configured ablations: of one region, of several together, or of each in turn."""
        method = self.ablation
        found = [method.of(name, self) for name in ablated_regions(self.config)]
        return found if self.config.ablation["region"] is None else [together(found)]

    def try_ablations(self) -> None:
        """Raise UserError for an ablation that cannot be done: that must be said before hours of training."""
        if "ablate" in step_names(self.config) and self.ablation.changes_model:
            for tried in self.ablations():
                with tried.applied(self.model):
                    pass


def create(config: Config, data: Any = None, run: Path | None = None) -> Task:
    """The task of a configuration; `data`, if it is at hand, is another run's `Task.data`.

    run: the folder of that very run, if it has begun: what a pretrained model is read back from, untrained.

    Raises: UserError for every mistake in the configuration or the data.
    """
    made: Task = build(config.task, "task", config=config, data=data, run=run)
    return made
