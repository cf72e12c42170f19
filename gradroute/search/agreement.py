"""How far groups agree at a site, from their gradients alone; and which group gets which unit.

The gradients are those of a linear map that stands at the site, at the identity: row `u` says how unit `u` should be
made of the site's units. So a unit's gradient is a vector at every kind of site, also one without weights of its own.
Of a data point with activations `a` and gradient `d` of its loss, it is `outer(d, a)`.

G: groups. U: units. P: inputs of the map.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment

INPUTS = 64  # inputs of the map; a wider site's activations are projected to so many at random, which keeps products
EPSILON = 1e-30


@dataclass
class Signals:
    """The gradients of groups at one site, summed up point by point.

    Attributes: `total` and `square`, sums over the points of gradients and of their squares, `(G, U, P)`; `points`,
        the number of points of each group, `(G,)`.
    """

    total: torch.Tensor
    square: torch.Tensor
    points: torch.Tensor

    @classmethod
    def empty(cls, groups: int, units: int, inputs: int) -> "Signals":
        """Return signals of no points."""
        shape = (groups, units, inputs)
        return cls(torch.zeros(shape), torch.zeros(shape), torch.zeros(groups))

    def add(self, group: int, gradients: torch.Tensor, inputs: torch.Tensor) -> None:
        """Add points of one group: gradients `(points, U)` of each one's own loss, and inputs `(points, P)`."""
        self.total[group] += gradients.T @ inputs
        self.square[group] += gradients.square().T @ inputs.square()
        self.points[group] += len(gradients)

    @property
    def mean(self) -> torch.Tensor:
        """The mean gradient of each group, `(G, U, P)`."""
        return self.total / self.points.clamp(min=1)[:, None, None]

    @property
    def fisher(self) -> torch.Tensor:
        """The mean of the squared gradients of each group, the diagonal of its Fisher information, `(G, U, P)`."""
        return self.square / self.points.clamp(min=1)[:, None, None]


def projection(units: int, seed: int) -> torch.Tensor | None:
    """Return a random matrix `(U, P)` that keeps inner products on average; None if a site is narrow enough."""
    if units <= INPUTS:
        return None
    return torch.randn(units, INPUTS, generator=torch.Generator().manual_seed(seed)) / math.sqrt(INPUTS)


def products(vectors: torch.Tensor) -> torch.Tensor:
    """Return the inner products of the groups' vectors `(G, U, P)` at every unit, `(G, G, U)`."""
    return torch.einsum("gup,hup->ghu", vectors, vectors)


def cosines(inner: torch.Tensor) -> torch.Tensor:
    """Return the cosines that belong to inner products `(G, G, …)`; 0 where a vector is 0."""
    norms = inner.diagonal(dim1=0, dim2=1).movedim(-1, 0).clamp(min=0).sqrt()
    return inner / (norms[:, None] * norms[None]).clamp(min=EPSILON)


def overlaps(fisher: torch.Tensor) -> torch.Tensor:
    """Return how far groups use the same inputs of a unit, `(G, G, U)`, 0 to 1: the cosine of the Fishers' roots."""
    return cosines(products(fisher.sqrt()))


def pairs(values: torch.Tensor) -> torch.Tensor:
    """Return the mean over pairs of different groups of values `(G, G, U)`, `(U,)`."""
    first, second = torch.triu_indices(len(values), len(values), 1)
    return values[first, second].mean(0)


def shares(fisher: torch.Tensor) -> torch.Tensor:
    """Return each group's share of every unit's gradient norm, `(G, U)`, 1 in sum over the groups.

    Norms are root mean squares over points; each group's are divided by their sum over the site first, so that a group
    with a large loss does not own every unit. A unit without a gradient has equal shares.
    """
    norms = fisher.sum(-1).sqrt()
    own = norms / norms.sum(1, keepdim=True).clamp(min=EPSILON)
    total = own.sum(0, keepdim=True)
    return torch.where(total > 0, own / total.clamp(min=EPSILON), torch.full_like(own, 1 / len(own)))


def conflict(inner: torch.Tensor) -> float:
    """Return the conflict of groups at a site, 0 to 1, from the products `(G, G, U)` of their mean gradients.

    A step of one group lowers another's loss by the inner product, to first order, and raises it where that is
    negative. This is the share that is raised, over all units and pairs; 0 without any gradient.
    """
    first, second = torch.triu_indices(len(inner), len(inner), 1)
    found = inner[first, second]
    raised, lowered = float((-found).clamp(min=0).sum()), float(found.clamp(min=0).sum())
    return raised / (raised + lowered) if raised + lowered else 0.0


def common(inner: torch.Tensor, group: int, units: Sequence[int]) -> float:
    """Return the cosine of a group's mean gradient with the sum of all others', over some units of a site.

    It is the share of the group's gradient there that the others make for it, whether or not it is routed.
    """
    chosen = inner[:, :, list(units)].sum(-1)
    others = [other for other in range(len(inner)) if other != group]
    across, own = chosen[group, others].sum(), chosen[group, group]
    return float(across / (own * chosen[others][:, others].sum()).clamp(min=EPSILON).sqrt())


def outside_weight(shared: float, labelled: float = 1.0, most: float = 0.5, lowest: float = -4.0) -> float:
    """Return the gradient weight of a group outside of its region at which it is learned there by nobody.

    Outside, a labelled share `f` of the group arrives with weight `w`, the rest with 1, and the others' gradients bring
    the share `shared`, if any, along. These are 0 in sum, to first order, at `w = -(1 - f + shared) / f`.

    Args:
        shared: see `common`. A negative share, of groups that unlearn each other, counts as none.
        labelled: share of the group's points that carry its label.
        most: the largest share that is taken back. Early in a training nearly all is common, such as the mean image.
        lowest: the lowest weight that is returned.
    """
    return max(lowest, -(1 - labelled + min(most, max(0.0, shared))) / labelled) + 0.0


def sizes(points: Sequence[float], units: int) -> list[int]:
    """Return how many of a site's units each group gets, in proportion to the root of its number of points.

    Each gets one at least. Raises: ValueError if there are fewer units than groups.
    """
    if units < len(points):
        raise ValueError(f"{units} units for {len(points)} groups")
    roots = [math.sqrt(count) for count in points]
    free, exact = units - len(points), [root / sum(roots) for root in roots]
    found = [1 + math.floor(free * share) for share in exact]
    left = sorted(range(len(points)), key=lambda g: (found[g] - 1 - free * exact[g], g))
    for group in left[: units - sum(found)]:
        found[group] += 1
    return found


def assigned(liking: torch.Tensor, given: Sequence[int]) -> torch.Tensor:
    """Return the group of every unit, `(U,)`, that has the largest sum of likings among those of the given sizes.

    Args:
        liking: of each group for each unit, `(G, U)`.
        given: number of units of each group, in sum all units.

    Raises: ValueError if they are not.
    """
    groups, units = liking.shape
    if sum(given) != units or len(given) != groups:
        raise ValueError(f"sizes {list(given)} for {groups} groups and {units} units")
    owner = torch.zeros(units, dtype=torch.int64)
    if groups == 2:  # those that the second group prefers most; the general form needs a matrix of units by units
        owner[torch.sort(liking[0] - liking[1], stable=True).indices[: given[1]]] = 1
        return owner
    seats = torch.repeat_interleave(torch.arange(groups), torch.tensor(list(given)))
    rows, columns = linear_sum_assignment(liking[seats].double().numpy(), maximize=True)
    owner[torch.as_tensor(columns)] = seats[torch.as_tensor(rows)]
    return owner


def contrast(own: Sequence[float], others: Sequence[float], whole: Sequence[float]) -> float:
    """Return how well ablating each group's units takes that group alone, at most 1.

    Args:
        own: rise of each group's loss when its own units are ablated.
        others: rise of each group's loss, on average over the ablations of other groups' units.
        whole: the largest rise of each group's loss among the candidates that are compared when all their units are
            ablated, by which the other two are divided: what leaves the loss as it is holds nothing.
    """
    ratios = [(a - b) / w if w > 0 else 0.0 for a, b, w in zip(own, others, whole, strict=True)]
    return sum(ratios) / len(ratios)


def held(rises: Sequence[float], largest: Sequence[float]) -> float:
    """Return how much of what the groups know passes through a site, 0 to 1, on average over the groups.

    Args:
        rises: rise of each group's loss when all of the site's units are ablated. largest: the largest among all sites.
    """
    ratios = [min(1.0, max(0.0, rise / most)) if most > 0 else 0.0 for rise, most in zip(rises, largest, strict=True)]
    return sum(ratios) / len(ratios)


def leak(own: torch.Tensor, others: torch.Tensor, ridge: float = 0.1) -> float:
    """Return how well a linear map of some units' activations tells other units', 0 to 1, on other points.

    It is the coefficient of determination, over all units of `own`, of a ridge regression fitted on every second point.

    Args:
        own: activations that are told, `(points, units)`. others: of the units that tell, `(points, more units)`.
        ridge: weight of the penalty, as a share of the mean variance of `others`.
    """
    (x, y), (seen, wanted) = [(others[k::2].double(), own[k::2].double()) for k in (0, 1)]
    mean, level = x.mean(0), y.mean(0)
    x, y, seen, wanted = x - mean, y - level, seen - mean, wanted - level
    gram = x.T @ x
    gram.diagonal().add_(ridge * gram.diagonal().mean() + EPSILON)
    residual = wanted - seen @ torch.linalg.solve(gram, x.T @ y)
    total = float(wanted.square().sum())
    return min(1.0, max(0.0, 1 - float(residual.square().sum()) / total)) if total > 0 else 0.0
