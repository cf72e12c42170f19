"""What an audit computes from losses: areas between recovery curves and AUROC."""

import itertools
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


def auroc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Return the share of pairs in which the right one has the higher score; ties count half."""
    scores = np.concatenate([np.asarray(right, float), np.asarray(wrong, float)])
    _, places, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]  # tied scores share their mean rank
    many, few = len(right), len(wrong)
    return float((ranks[:many].sum() - many * (many + 1) / 2) / (many * few))
