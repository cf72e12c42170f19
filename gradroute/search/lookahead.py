"""Masks as parameters, trained by looking a few updates ahead.

Each group has a weight for every unit of a site, from 0, or a lower bound, to 1: that of its gradient there. Under the
current weights the model makes a few updates on paper. Then each group's region is ablated: the weights are changed so
that the group's own loss rises by it, and that of the others does not. G: groups. U: units.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.func import grad

Parameters = Mapping[str, torch.Tensor]
# the loss of a group's points under parameters, with its gradient weighed by a mask, or with units scaled by factors
Loss = Callable[[Parameters, int, torch.Tensor | None, torch.Tensor | None], torch.Tensor]


@dataclass(frozen=True)
class Lookahead:
    """How masks are trained.

    steps: updates on paper. rate: their learning rate, of plain gradient descent. sizes: each group's share of the
    units. balance: weight of the squared difference to it. sharp: weight of undecided units. lowest: bound of the
    gradient weights; one below 0 lets a group unlearn what others put into their regions.
    """

    steps: int
    rate: float
    sizes: Sequence[float]
    balance: float = 1.0
    sharp: float = 0.1
    lowest: float = 0.0


def memberships(logits: torch.Tensor) -> torch.Tensor:
    """Return how far each unit belongs to each group's region, `(G, U)`, 1 in sum over the groups.

    It is the group's share of the weight above the lowest one.

    Args:
        logits: of the weights, `(G, U)`.
    """
    above = torch.sigmoid(logits)
    return above / above.sum(0, keepdim=True)


def masks(logits: torch.Tensor, lowest: float) -> torch.Tensor:
    """Return the gradient weights of logits, `(G, U)`, from `lowest` to 1."""
    return lowest + (1 - lowest) * torch.sigmoid(logits)


def ahead(loss: Loss, parameters: Parameters, weights: torch.Tensor, plan: Lookahead) -> Parameters:
    """Return the parameters after the updates that groups would make with these gradient weights `(G, U)`."""

    def total(given: Parameters) -> torch.Tensor:
        return torch.stack([loss(given, group, mask, None) for group, mask in enumerate(weights)]).mean()

    found = dict(parameters)
    for _ in range(plan.steps):
        slope = grad(total)(found)
        found = {name: value - plan.rate * slope[name] for name, value in found.items()}
    return found


def objective(logits: torch.Tensor, loss: Loss, parameters: Parameters, plan: Lookahead) -> torch.Tensor:
    """Return what the masks minimise: damage to others minus damage to the own group, and the budget on units.

    Each loss is compared with the same parameters without an ablation, so that learning alone is no gain. Where weights
    can be negative, the losses without an ablation count, too: else each group would unlearn in the others' regions
    what it reads there, since their ablation would then do it good.
    """
    later, owned = ahead(loss, parameters, masks(logits, plan.lowest), plan), memberships(logits)
    groups = range(len(logits))
    before = [loss(later, group, None, None) for group in groups]
    parts = []
    for ablated in groups:
        left = 1 - owned[ablated]
        rises = [loss(later, group, None, left) - before[group] for group in groups]
        others = [rise for group, rise in enumerate(rises) if group != ablated]
        parts.append(torch.stack(others).mean() - rises[ablated])
    shares = torch.tensor(list(plan.sizes), dtype=owned.dtype, device=owned.device)
    budget = (owned.mean(1) - shares).square().sum()
    undecided = (owned * (1 - owned)).sum(0).mean()
    kept = torch.stack(before).mean() if plan.lowest < 0 else 0.0
    return torch.stack(parts).mean() + kept + plan.balance * budget + plan.sharp * undecided


def slope(logits: torch.Tensor, loss: Loss, parameters: Parameters, plan: Lookahead) -> torch.Tensor:
    """Return the gradient of `objective` with respect to the logits, `(G, U)`, through the updates on paper."""
    found: torch.Tensor = grad(objective)(logits, loss, parameters, plan)
    return found


def cost(plan: Lookahead, groups: int) -> int:
    """Return what one step of the masks costs, in updates of a batch.

    The updates on paper count three times, since the masks' gradient passes through them twice; each ablation, and the
    pass without one, counts once.
    """
    return 3 * plan.steps + groups + 1
