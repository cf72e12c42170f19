"""The confidence interval of a mean over runs."""

import math
from collections.abc import Sequence


def interval(values: Sequence[float]) -> float:
    """Return the half-width of the 95 % t-interval of the mean over independent runs; nan for one run."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)
