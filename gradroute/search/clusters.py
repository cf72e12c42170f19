"""Groups without labels: clusters of data points by their gradients, and whether there are any.

A point is its gradient at a site, sketched: the outer product of gradient and activation, both projected at random. The
number of clusters is the largest at which two halves of the points make the same clusters. They are believed only where
they explain more than clusters of shuffled gradients, which have the same distribution of every number and no groups.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

SKETCH = 16  # numbers that gradient and activation are projected to, each
RESTARTS = 4
ROUNDS = 50
PLACEBOS = 19  # so that nothing but chance is believed once in twenty times
ABOUT = 0.02  # difference of stabilities that does not count


def _projections(units: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator, small = torch.Generator().manual_seed(seed), min(SKETCH, units)
    first, second = (torch.randn(units, small, generator=generator) / small**0.5 for _ in range(2))
    return first, second


def directions(points: torch.Tensor) -> torch.Tensor:
    """Return points, `(points, numbers)`, at length 1."""
    sizes: torch.Tensor = points.norm(dim=1, keepdim=True).clamp(min=1e-12)
    return points / sizes


def sketches(gradients: torch.Tensor, activations: torch.Tensor, seed: int) -> torch.Tensor:
    """Return a direction for each point, `(points, numbers)`: its gradient of a linear map at the site, sketched.

    Args:
        gradients, activations: `(points, U)`, or `(points, positions, U)`, over whose positions is summed.
    """
    units = gradients.shape[-1]
    first, second = _projections(units, seed)
    turned, seen = gradients.reshape(len(gradients), -1, units) @ first, activations.reshape(len(gradients), -1, units)
    return directions(torch.einsum("npi,npj->nij", turned, seen @ second).flatten(1))


def sketched_positions(gradients: torch.Tensor, activations: torch.Tensor, seed: int) -> torch.Tensor:
    """Return the sketch of each position of `(positions, U)`, whose sum over a point's positions has its direction."""
    first, second = _projections(gradients.shape[-1], seed)
    return torch.einsum("pi,pj->pij", gradients @ first, activations @ second).flatten(1)


def shuffled(points: torch.Tensor, seed: int) -> torch.Tensor:
    """Return points with every column in an order of its own: what is left are the columns' distributions."""
    generator = torch.Generator().manual_seed(seed)
    columns = [column[torch.randperm(len(points), generator=generator)] for column in points.T]
    return torch.stack(columns, 1)


def centres(points: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Return the centres of k-means, `(count, numbers)`: the best of some restarts from k-means++."""
    generator, best = torch.Generator().manual_seed(seed), (float("inf"), points[:count])
    for _ in range(RESTARTS):
        found = points[torch.randint(len(points), (1,), generator=generator)]
        while len(found) < count:
            weights = torch.cdist(points, found).min(1).values.square()
            drawn = torch.multinomial(weights + 1e-12, 1, generator=generator)
            found = torch.cat([found, points[drawn]])
        for _ in range(ROUNDS):
            own = nearest(points, found)
            counts = torch.bincount(own, minlength=count)
            sums = torch.zeros_like(found).index_add_(0, own, points)
            moved = torch.where(counts[:, None] > 0, sums / counts.clamp(min=1)[:, None], found)
            if torch.equal(moved, found):
                break
            found = moved
        spread = float(torch.cdist(points, found).min(1).values.square().sum())
        best = min(best, (spread, found), key=lambda one: one[0])
    return best[1]


def nearest(points: torch.Tensor, found: torch.Tensor) -> torch.Tensor:
    """Return the number of the nearest centre of every point, `(points,)`."""
    return torch.cdist(points, found).argmin(1)


def rand_index(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the adjusted Rand index of two divisions of the same points: 1 if they agree, 0 as by chance."""
    table = torch.zeros(int(first.max()) + 1, int(second.max()) + 1, dtype=torch.float64)
    table.index_put_((first, second), torch.ones(len(first), dtype=torch.float64), accumulate=True)
    pairs = lambda counts: float((counts * (counts - 1) / 2).sum())  # noqa: E731
    both, rows, columns = pairs(table), pairs(table.sum(1)), pairs(table.sum(0))
    expected, most = rows * columns / (len(first) * (len(first) - 1) / 2), (rows + columns) / 2
    return (both - expected) / (most - expected) if most > expected else 1.0


def stability(points: torch.Tensor, count: int, seed: int, repeats: int = 5) -> float:
    """Return how far the clusters of two halves of the points agree on all of them, by the adjusted Rand index."""
    generator, found = torch.Generator().manual_seed(seed), 0.0
    for repeat in range(repeats):
        order = torch.randperm(len(points), generator=generator)
        halves = [centres(points[order[k::2]], count, seed + repeat) for k in (0, 1)]
        found += rand_index(*(nearest(points, half) for half in halves)) / repeats
    return found


def explained(points: torch.Tensor, found: torch.Tensor) -> float:
    """Return the share of the points' variance that the nearest of the centres explain."""
    whole = (points - points.mean(0)).square().sum()
    return 1 - float(torch.cdist(points, found).min(1).values.square().sum() / whole.clamp(min=1e-12))


@dataclass(frozen=True)
class Clusters:
    """Clusters of points.

    centres: `(clusters, numbers)`. stable: stability by number of clusters. share: of the variance that they explain.
    placebos: shares that as many clusters of shuffled points explain.
    """

    centres: torch.Tensor
    stable: dict[int, float]
    share: float
    placebos: list[float]

    @property
    def real(self) -> bool:
        """Whether there was anything: the clusters explain more than all those of shuffled points."""
        return self.share > max(self.placebos)


def clustered(points: torch.Tensor, counts: Sequence[int], seed: int) -> Clusters:
    """Return the clusters of points for the largest of some numbers that is about as stable as the most stable one."""
    stable = {count: stability(points, count, seed) for count in counts}
    best = max(count for count in counts if stable[count] > max(stable.values()) - ABOUT)
    found = centres(points, best, seed)
    mixed = [shuffled(points, seed + number) for number in range(PLACEBOS)]
    placebos = [explained(one, centres(one, best, seed)) for one in mixed]
    return Clusters(found, stable, explained(points, found), placebos)
