"""What a checked configuration stands for: data, groups, model, routes, ablations; and what is measured of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.config.schema import Config, TrainerConfig
from gradroute.routing import ParameterRouter, Router, Site, ablation
from gradroute.routing.ablation import Ablation
from gradroute.tasks.evaluation import Head
from gradroute.tasks.parts import Parts, own_tensors
from gradroute.training.devices import pick_device, pick_precision
from gradroute.training.objectives import Batch, Objective

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
    problem's and the configuration's if None.
    """

    title: str
    objective: Objective
    batch: Callable[[torch.Tensor], Batch]
    points: int | None = None
    trainer: TrainerConfig | None = None


class Problem(ABC):
    """Everything a run needs, built and checked; nothing is written and nothing is trained.

    A kind of problem (`reconstruction`, …) reads its data, builds its model and says what is measured.

    Attributes: `names`, the groups; `sha256`, of the data; `points`, how many there are to train on; `routed`, their
    group numbers as training sees them, `(points,)` or of every token, -1 for none.
    """

    config: Config
    device: torch.device
    data: Any
    names: list[str]
    sha256: str
    points: int
    routed: torch.Tensor
    parts: Parts

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

    def at_step(self, step: int) -> None:
        """Have the routes be what they are at an update, from 0."""
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

    @abstractmethod
    def more(self) -> list[str]:
        """Names of the modules that steps after the training have made so far, in order."""

    @abstractmethod
    def make(self, name: str) -> nn.Module:
        """Make one of them anew, untrained."""

    @abstractmethod
    def expected(self) -> list[str]:
        """Names of those that a finished run has."""

    @abstractmethod
    def probes(self) -> Iterator[Probe]:
        """What `certify` trains on the frozen model."""

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
        """Arrays and names that the report draws from."""

    def texts(self) -> dict[str, str]:
        """Files that a run leaves beside what every run does, by name."""
        return {}

    def kept(self) -> dict[str, str]:
        """Files that the run is read back from, by name, which it has from the beginning."""
        return {}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of everything that was trained, by name, on the CPU."""
        named = {
            f"{prefix}.{k}": v for prefix, module in self.modules().items() for k, v in own_tensors(module).items()
        }
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    def ablations(self) -> list[Ablation]:
        """The configured ablations: of one region, of several together, or of each in turn."""
        given = self.config.ablation.region
        if given is None:
            return [self._ablation(name) for name in self.config.routing.regions]
        return [ablation.together([self._ablation(name) for name in ([given] if isinstance(given, str) else given)])]

    def _ablation(self, name: str) -> Ablation:
        kind, seed = self.config.ablation.kind, self.config.seed
        router = self.router if name in self.router.regions else self.parts.parameter_router
        if kind == "zero":
            return ablation.zero(name, router)
        if kind == "reinitialise":
            return ablation.reinitialise(name, router, seed)
        assert isinstance(router, Router)  # by the configuration's checks
        if kind == "remove":
            return ablation.remove(name, router, self.example())
        seen = self.activations(router.regions[name].sites)
        return ablation.mean(name, router, seen) if kind == "mean" else ablation.resample(name, router, seen, seed)

    def try_ablations(self) -> None:
        """Raise UserError for an ablation that cannot be done: that must be said before hours of training."""
        if "ablate" in self.config.steps and self.config.ablation.kind in ("reinitialise", "remove"):
            for tried in self.ablations():
                with tried.applied(self.model):
                    pass
