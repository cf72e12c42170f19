"""What a search looks for in a run's numbers, and when a run is hopeless."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.config.doors import TARGET
from gradroute.config.components import steps_of
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import unknown
from gradroute.records.metrics import UNITS
from gradroute.search.schema import ObjectiveConfig, PruningConfig

Point = list[float]  # how many updates were made, and each objective then


def default_objectives(config: Config) -> dict[str, ObjectiveConfig]:
    """What is looked for in runs of `config` if a search does not say: what its task says.

    Raises: UserError if its task says nothing.
    """
    task = locate(config.task[TARGET], "task")
    return {name: ObjectiveConfig(**fields) for name, fields in task.search_objectives(config).items()}


def units_of(config: Config) -> dict[str, str]:
    """Return the units of the metrics that runs of `config` can have, by name, with those of its own components."""
    components = [*config.measures, *config.losses.penalties, config.losses.error]
    found = [locate(part[TARGET], "search.objectives") for part in components if part]
    units = {part.name: part.unit for part in found if isinstance(getattr(part, "name", None), str)}
    for step in steps_of(config):
        units |= step.units
    return UNITS | units


def check_metrics(objectives: Mapping[str, ObjectiveConfig], units: Mapping[str, str]) -> None:
    """Raise UserError for an objective with a metric that has no unit here."""
    for name, objective in objectives.items():
        if objective.metric not in units:
            raise unknown(f"metric of search.objectives.{name}:", objective.metric, units)


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


def by_reference(costs: Sequence[Sequence[float]], reference: Sequence[float] | None = None) -> list[int]:
    """Places of the front in the order of their largest excess over `reference`, each column scaled to its range there.

    Those that are as low as it everywhere come first, then those that miss it least (Wierzbicki's reference point).
    Without one it is the lowest of every column.
    """
    found = pareto(costs)
    columns = list(zip(*(costs[place] for place in found), strict=True))
    point, span = reference or [min(c) for c in columns], [max(c) - min(c) or 1.0 for c in columns]

    def order(place: int) -> tuple[float, float, int]:
        excess = [(value - at) / s for value, at, s in zip(costs[place], point, span, strict=True)]
        return max(excess), sum(excess), place

    return sorted(found, key=order)
