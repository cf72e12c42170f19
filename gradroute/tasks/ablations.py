"""Ablation methods: what `ablation=` in a configuration does to a region of a task's model."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

import torch

from gradroute.errors import UserError
from gradroute.models.adapters import left_out
from gradroute.models.beside import without_beside
from gradroute.routing import ParameterRouter, Router, Site, ablation
from gradroute.routing.ablation import Ablation


class Subject(Protocol):
    """The part of a task that an ablation may use: its routers, some data, and the seed in its configuration."""

    config: Any

    @property
    def router(self) -> Router:
        """The router of regions of activations."""
        ...

    def router_of(self, region: str) -> Router | ParameterRouter:
        """Return the router that contains a region."""
        ...

    def activations(self, sites: tuple[Site, ...]) -> Mapping[str, torch.Tensor]:
        """Return activations of the training data at some sites, by site name."""
        ...

    def example(self) -> torch.Tensor:
        """Return a few data points in the model's input shape."""
        ...


class AblationMethod(ABC):
    """A way to ablate a region of a model. The constructor's arguments are the keys of its configuration.

    Attributes:
        name: name of the method, as shown in plots.
        of_parameters: whether it also works on regions of parameters, which have no activations.
        of_adapters: whether it also works on regions that are adapters.
        changes_model: whether it changes weights or structure. Such an ablation is tried before the training, and later
            steps can train the ablated model.
        alike: whether models of different weights, so ablated, differ in their parameters only: those of a stack are
            then measured in one pass.
    """

    name: ClassVar[str]
    of_parameters: ClassVar[bool] = False
    changes_model: ClassVar[bool] = False
    of_adapters: ClassVar[bool] = False
    alike: ClassVar[bool] = False

    @abstractmethod
    def of(self, region: str, task: Subject) -> Ablation:
        """Return the ablation of one region of a task's model; `gradroute.routing.ablation` has building blocks."""

    @staticmethod
    def router(region: str, task: Subject) -> Router:
        """Return the router of a region of activations. Raises: UserError for a region of parameters."""
        if region not in task.router.regions:
            raise UserError(f"ablation: region '{region}' consists of parameters and has no activations; use "
                            "zero or reinitialise")  # fmt: skip
        return task.router


class Zero(AblationMethod):
    """Replace the region's activations, or its parameters, by 0."""

    name, of_parameters, of_adapters, alike = "zero", True, True, True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        return ablation.zero(region, task.router_of(region))


class Mean(AblationMethod):
    """Replace the region's activations by each unit's mean over training data."""

    name = "mean"

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        router = self.router(region, task)
        return ablation.mean(region, router, task.activations(router.regions[region].sites))


class Resample(AblationMethod):
    """Replace the region's activations by those of other data points, chosen at random."""

    name = "resample"

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        router = self.router(region, task)
        return ablation.resample(region, router, task.activations(router.regions[region].sites), task.config.seed)


class Reinitialise(AblationMethod):
    """Reinitialise the region's parameters, or the rows of the layer that computes the region's units."""

    name, of_parameters, changes_model, alike = "reinitialise", True, True, True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        return ablation.reinitialise(region, task.router_of(region), task.config.seed)


class Remove(AblationMethod):
    """Remove the region's units, its adapter or its module from the model, which makes it smaller."""

    name, changes_model, of_adapters, alike = "remove", True, True, True

    def of(self, region: str, task: Subject) -> Ablation:  # noqa: D102
        asked = task.config.routing.regions[region]
        if asked.adapter is not None:
            return left_out(region, asked.adapter)
        if asked.module is not None:
            return without_beside(region, asked.module)
        return ablation.remove(region, self.router(region, task), task.example())
