"""What a search looks for in a run's numbers, and when a run is hopeless."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.search_schema import ObjectiveConfig, PruningConfig

Point = list[float]  # how many updates were made, and each objective then


def value_of(rows: Sequence[Mapping[str, Any]], objective: ObjectiveConfig) -> float | None:
    """The objective in a run's rows; None if it is not there."""
    key = (objective.head, objective.region, objective.metric)
    found = {r["group"]: float(r["value"]) for r in rows if (r["head"], r["region"], r["metric"]) == key}
    if objective.group != "mean":
        return found.get(objective.group)
    values = [value for group, value in found.items() if group != "all"]
    return statistics.fmean(values) if values else None


def hopeless(
    point: Point, others: Sequence[Sequence[Point]], objectives: Sequence[ObjectiveConfig], rule: PruningConfig
) -> bool:
    """Whether a trial is, by `rule.margin`, worse in every objective than the median of others after as many updates.

    Args:
        point: where the trial is.
        others: the curves of those before it; at least `rule.after` must have come as far.
    """
    at = [found for curve in others for found in curve if found[0] == point[0]]
    if len(at) < rule.after or len(point) != len(objectives) + 1:
        return False
    worse = []
    for number, objective in enumerate(objectives, 1):
        median = statistics.median(found[number] for found in at)
        sign = 1 if objective.goal == "lower" else -1
        worse.append(sign * (point[number] - median) > rule.margin * abs(median))
    return all(worse)


def pareto(costs: Sequence[Sequence[float]]) -> list[int]:
    """Places of the rows that no other row beats: is as low in every column, and lower in one."""
    return [
        place
        for place, mine in enumerate(costs)
        if not any(all(a <= b for a, b in zip(c, mine, strict=True)) and list(c) != list(mine) for c in costs)
    ]


def by_balance(costs: Sequence[Sequence[float]], beaten: Sequence[float] | None = None) -> list[int]:
    """Places of the front, nearest first to the best of every column, each scaled to its range over the front.

    With a row `beaten`, those come first that are as low as it in every column.
    """
    found = pareto(costs)
    columns = list(zip(*(costs[place] for place in found), strict=True))
    least, span = [min(c) for c in columns], [max(c) - min(c) or 1.0 for c in columns]

    def order(place: int) -> tuple[bool, float, int]:
        above = beaten is not None and any(v > b for v, b in zip(costs[place], beaten, strict=True))
        return above, math.hypot(*((v - a) / s for v, a, s in zip(costs[place], least, span, strict=True))), place

    return sorted(found, key=order)
