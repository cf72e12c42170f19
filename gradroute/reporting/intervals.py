"""The mean over runs and its confidence interval."""

import math
import statistics
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


def mean_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean and the bounds of its 95 % t-interval; the bounds of a single value are infinite."""
    mean, half = math.fsum(values) / len(values), interval(values)
    return (mean, -math.inf, math.inf) if math.isnan(half) and len(values) < 2 else (mean, mean - half, mean + half)


def shown(values: Sequence[float], form: str = ".3f") -> str:
    """Return the mean as text, with the half-width of its interval if there are several values; `form` may have `+`."""
    half = interval(values)
    text = f"{statistics.mean(values):{form}}"
    return text if math.isnan(half) else f"{text} ± {half:{form.lstrip('+')}}"
