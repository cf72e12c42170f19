"""Kinds of ablation by name or import path: what `ablation=` of a configuration means for a task's regions."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch

from gradroute.errors import UserError
from gradroute.routing import ParameterRouter, Router, Site, ablation
from gradroute.routing.ablation import Ablation


class Subject(Protocol):
    """What an ablation may use of a task: its routers, data at hand to look at, and the seed in its configuration."""

    config: Any

    @property
    def router(self) -> Router:
        """The router of regions of activations."""
        ...

    def router_of(self, region: str) -> Router | ParameterRouter:
        """The router that has a region."""
        ...

    def activations(self, sites: tuple[Site, ...]) -> Mapping[str, torch.Tensor]:
        """Activations of the training data at some sites, by name."""
        ...

    def example(self) -> torch.Tensor:
        """A few data points as the model takes them."""
        ...


class AblationMethod(ABC):
    """A way to take a region out of a model. Its constructor's arguments are its configuration.

    Attributes: `name`, in plots; `of_parameters`, whether it works on regions of parameters, which have no activations;
    `changes_model`, whether it changes weights or structure, so that it is tried before anything is trained, and
    what it leaves can be trained on.
    """

    name: ClassVar[str]
    of_parameters: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False

    @abstractmethod
    def of(self, region: str, task: Subject) -> Ablation:
        """The ablation of one region of a task's model. `gradroute.routing.ablation` has the parts to make one of."""

    @staticmethod
    def router(region: str, task: Subject) -> Router:
        """The router of a region of activations. Raises: UserError for a region of parameters."""
        if region not in task.router.regions:
            raise UserError(f"ablation: region '{region}' is parameters and has no activations; use zero or "
                            "reinitialise")  # fmt: skip
        return task.router


class Zero(AblationMethod):
    """The region's activations, or its parameters, are 0."""

    name, of_parameters = "zero", True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        return ablation.zero(region, task.router_of(region))


class Mean(AblationMethod):
    """The region's activations are each unit's mean over training data."""

    name = "mean"

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        router = self.router(region, task)
        return ablation.mean(region, router, task.activations(router.regions[region].sites))


class Resample(AblationMethod):
    """The region's activations are those of other, random data points."""

    name = "resample"

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        router = self.router(region, task)
        return ablation.resample(region, router, task.activations(router.regions[region].sites), task.config.seed)


class Reinitialise(AblationMethod):
    """The rows of the layer that makes the region's units, or the region's parameters, are drawn anew."""

    name, of_parameters, changes_model = "reinitialise", True, True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        return ablation.reinitialise(region, task.router_of(region), task.config.seed)


class Remove(AblationMethod):
    """The region's units are taken out of the structure: a smaller model."""

    name, changes_model = "remove", True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        return ablation.remove(region, self.router(region, task), task.example())
