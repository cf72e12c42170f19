"""The objectives of a search: their values in a run, when to prune a trial, and the Pareto front."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.comparison.runs import read_run
from gradroute.config.components import steps_of
from gradroute.config.doors import TARGET
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import UserError, unknown
from gradroute.records.metrics import UNITS
from gradroute.search.schema import ObjectiveConfig, PruningConfig

Point = list[float]  # number of updates, then the value of each objective


def default_objectives(config: Config) -> dict[str, ObjectiveConfig]:
    """Return the objectives for runs of `config` if a search names none: those of its task.

    Raises: UserError if the task has none.
    """
    task = locate(config.task[TARGET], "task")
    return {name: ObjectiveConfig(**fields) for name, fields in task.search_objectives(config).items()}


def units_of(config: Config) -> dict[str, str]:
    """Return the unit of every metric that runs of `config` can have, by name, also of its task and components."""
    components = [*config.measures, *config.losses.penalties, config.losses.error]
    found = [locate(part[TARGET], "search.objectives") for part in components if part]
    units = {part.name: part.unit for part in found if isinstance(getattr(part, "name", None), str)}
    for step in steps_of(config):
        units |= step.units
    return UNITS | units | dict(locate(config.task[TARGET], "task").own_units)


def check_metrics(objectives: Mapping[str, ObjectiveConfig], units: Mapping[str, str]) -> None:
    """Raise UserError for an objective whose metric is not in `units`."""
    for name, objective in objectives.items():
        if objective.metric not in units:
            raise unknown(f"metric of search.objectives.{name}:", objective.metric, units)


def value_of(rows: Sequence[Mapping[str, Any]], objective: ObjectiveConfig) -> float | None:
    """Return the objective's value in a run's rows, or None if it is missing."""
    key = (objective.head, objective.region, objective.metric)
    found = {r["group"]: float(r["value"]) for r in rows if (r["head"], r["region"], r["metric"]) == key}
    if objective.group != "mean":
        return found.get(objective.group)
    values = [value for group, value in found.items() if group != "all"]
    return statistics.fmean(values) if values else None


def hopeless(
    point: Point, others: Sequence[Sequence[Point]], objectives: Sequence[ObjectiveConfig], rule: PruningConfig
) -> bool:
    """Return whether a trial is worse than the median of others by `rule.margin` in every objective.

    Args:
        point: the trial's last measurement.
        others: the curves of earlier trials, compared after the same number of updates; `rule.after` or more must have
            got that far.
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
    """Return the indices of the rows that no other row dominates, by being as low in every column and lower in one."""
    return [
        place
        for place, mine in enumerate(costs)
        if not any(all(a <= b for a, b in zip(c, mine, strict=True)) and list(c) != list(mine) for c in costs)
    ]


def by_reference(costs: Sequence[Sequence[float]], reference: Sequence[float] | None = None) -> list[int]:
    """Return the indices of the Pareto front by largest excess over `reference`, columns scaled to the front's range.

    Rows as low as the reference in every column come first, then those that miss it least (Wierzbicki's reference
    point). The default reference is the minimum of every column.
    """
    found = pareto(costs)
    columns = list(zip(*(costs[place] for place in found), strict=True))
    point, span = reference or [min(c) for c in columns], [max(c) - min(c) or 1.0 for c in columns]

    def order(place: int) -> tuple[float, float, int]:
        excess = [(value - at) / s for value, at, s in zip(costs[place], point, span, strict=True)]
        return max(excess), sum(excess), place

    return sorted(found, key=order)


def measured(run: Path, objectives: Mapping[str, ObjectiveConfig]) -> list[float]:
    """Return the objectives of a finished run, by name. Raises: UserError if the run did not write one."""
    read = read_run(run)
    if read.left_out:
        raise UserError(f"{run}: {read.left_out}")
    values = list[float]()
    for key, one in objectives.items():
        value = value_of(read.rows, one)
        if value is None:
            wrote = sorted({f"{r['head']} {r['region']} {r['group']} {r['metric']}" for r in read.rows})
            wanted = f"{one.head} {one.region} {one.group} {one.metric}"
            raise UserError(f"search.objectives.{key}: no run writes {wanted}; use one of: {'; '.join(wrote)}")
        values.append(value)
    return values
