"""Penalties on the activations of regions; their gradients are not routed (GR App. B)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Annotated, Any, ClassVar

import torch

from gradroute.config.limits import WEIGHT, Between
from gradroute.config.schema import LossesConfig
from gradroute.config.targets import build
from gradroute.errors import UserError

Weight = Annotated[float, Between(0, WEIGHT)]


class Penalty(ABC):
    """A term of the loss that reads activations before the mask, so that it is not routed.

    Attributes: `name`, in the metrics; `unit`; `weight`, which multiplies it; `region`, the one that the metrics name;
    `whole_batch`, whether it is not a mean over points, so that a batch cannot be split into parts.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    whole_batch: ClassVar[bool] = False
    region: str = "all"

    def __init__(self, weight: Weight = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the penalty, a scalar, from every region's activations `(points, units)`, float32."""


class L1(Penalty):
    """Mean over points of the L1 norm of a region's activations; `losses.l1` is a shorthand for it."""

    name, unit = "l1", "mean L1 norm of the region's activations"

    def __init__(self, region: str, weight: Weight = 1.0) -> None:
        super().__init__(weight)
        self.region = region

    def __call__(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return l1_penalty(activations[self.region])


class Correlation(Penalty):
    """Mean |correlation| over pairs of units in different regions; `losses.correlation` is a shorthand for it."""

    name, unit, whole_batch = "correlation", "mean |correlation|, 0 to 1", True

    def __call__(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:  # noqa: D102
        return correlation_penalty(list(activations.values()))


def penalties_of(losses: LossesConfig, own_l1: bool = False) -> list[Penalty]:
    """Return a configuration's penalties without those of weight 0, and without L1 if a task has its `own_l1`.

    Raises: UserError for two penalties with the same name and region.
    """
    found: list[Penalty] = [] if own_l1 else [L1(name, weight) for name, weight in losses.l1.items() if weight]
    found += [Correlation(losses.correlation)] if losses.correlation else []
    found += [build(entry, f"losses.penalties.{place}") for place, entry in enumerate(losses.penalties)]
    names = [(penalty.name, penalty.region) for penalty in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"losses.penalties: '{twice[0][0]}' of region '{twice[0][1]}' occurs twice; keep one")
    return [penalty for penalty in found if penalty.weight]


def l1_penalty(activation: torch.Tensor) -> torch.Tensor:
    """Return the mean over images of the L1 norm of `(batch, units)`."""
    return activation.abs().sum(-1).mean()


class _L1ByUnit(torch.autograd.Function):
    """Each unit's mean |activation|; keeps no |activation| for the backward pass, which takes two passes, not four."""

    @staticmethod
    def forward(ctx: Any, points: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(points)
        precision = torch.promote_types(points.dtype, torch.float32)
        return points.abs().sum(0, dtype=precision) / len(points)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (points,) = ctx.saved_tensors
        return torch.sgn(points).mul_((gradients[0] / len(points)).to(points.dtype))


def l1_by_unit(activation: torch.Tensor) -> torch.Tensor:
    """Return each unit's mean |activation|, `(units,)`, of `(batch, …, units)`: their sum is the L1 penalty.

    Take regions from this result: each slice of the activations would have a gradient of their full size.
    """
    found: torch.Tensor = _L1ByUnit.apply(activation.flatten(0, -2))
    return found


def correlation_penalty(activations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean |correlation| over all pairs of units in different regions; each region `(batch, units)`.

    Units are standardised with the unbiased standard deviation and the products divided by the batch size, as
    published; a constant unit, or a batch of one image, contributes 0.
    """
    if len(activations) < 2 or len(activations[0]) < 2:
        return activations[0].new_zeros(()) if activations else torch.zeros(())
    batch = activations[0].shape[0]
    z = [(a - a.mean(0)) / a.std(0).clamp(min=1e-8) for a in activations]
    blocks = [(a.T @ b / batch).abs() for a, b in combinations(z, 2)]
    total = torch.stack([block.sum() for block in blocks]).sum()
    return total / sum(block.numel() for block in blocks)
