"""What an audit computes from losses: areas between recovery curves, intervals, AUROC and the compute ratio."""

import itertools
import math
from collections.abc import Sequence

import numpy as np


def area(points: Sequence[tuple[int, float]]) -> float:
    """Return the mean height of a curve over its updates, by trapezoids: its area divided by its width.

    Args:
        points: update and loss, updates ascending, at least one point.
    """
    if len(points) == 1:
        return points[0][1]
    pieces = itertools.pairwise(points)
    total = sum((right[0] - left[0]) * (left[1] + right[1]) / 2 for left, right in pieces)
    return total / (points[-1][0] - points[0][0])


def savings(audited: Sequence[tuple[int, float]], never_trained: Sequence[tuple[int, float]]) -> float:
    """Return the mean lead of the audited model's recovery curve over the never-trained model's, in units of loss.

    Raises: ValueError if the curves were measured at different updates.
    """
    if [x for x, _ in audited] != [x for x, _ in never_trained]:
        raise ValueError("recovery curves at different updates cannot be compared")
    return area(never_trained) - area(audited)


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the bounds of its 95 % t-interval; the bounds of a single value are infinite."""
    from scipy.special import stdtrit

    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, -math.inf, math.inf
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1))
    half = float(stdtrit(count - 1, 0.975)) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


def auroc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return the share of pairs in which the right one has the higher score; ties count half."""
    scores = np.concatenate([np.asarray(right, float), np.asarray(wrong, float)])
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # tied scores share their mean rank
    many, few = len(right), len(wrong)
    return float((ranks[:many].sum() - many * (many + 1) / 2) / (many * few))


def fitted_curve(steps: Sequence[float], losses: Sequence[float]) -> tuple[float, float, float]:
    """Fit loss = A (step + s0)^-alpha by least squares of log loss; return A, alpha and s0 (GRAM, App. M).

    Raises: ValueError for fewer than four points, or losses that are not positive.
    """
    from scipy.optimize import least_squares

    if len(steps) < 4 or min(losses) <= 0:
        raise ValueError("a curve needs four points with losses above 0")
    x, y = np.asarray(steps, float), np.log(np.asarray(losses, float))
    largest = float(x.max())

    def residuals(given: np.ndarray) -> np.ndarray:
        return np.asarray(given[0] - given[1] * np.log(x + np.exp(given[2])) - y)

    bounds = ([-20, 0.001, math.log(1e-3)], [60, 5, math.log(1e3 * largest)])
    starts = [np.array([y[0], 0.3, math.log(share * largest)]) for share in (1e-3, 0.1, 1.0)]
    best = min((least_squares(residuals, start, bounds=bounds) for start in starts), key=lambda found: found.cost)
    return math.exp(best.x[0]), float(best.x[1]), math.exp(best.x[2])


def compute_ratio(loss: float, final: float, curve: tuple[float, float, float]) -> float:
    """Return the updates at which a baseline's fitted curve has `loss`, over those at which it has its `final` loss.

    1 is as good as the baseline, 0.1 what it has after a tenth of its training.
    """
    factor, exponent, start = curve

    def updates(value: float) -> float:
        return max(1e-3, (factor / value) ** (1 / exponent) - start)

    return float(updates(loss) / updates(final))
