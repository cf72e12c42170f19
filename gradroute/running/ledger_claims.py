"""What a run's ledger claims: weights as configured, groups that never reached a region, regions that stood still."""

import itertools
import math
from collections.abc import Collection, Iterator
from typing import Any

from gradroute.config.compensation import weights_of
from gradroute.config.schema import Config
from gradroute.routing.routes import Route, read_route
from gradroute.running.claims import Claim

Rows = list[dict[str, Any]]


def _values_in(route: Route, row: dict[str, Any]) -> list[tuple[float, float]]:
    """Return weight and forward factor at the updates of a ledger row where they may be extreme: its ends and kinks."""
    first, last = row["from_step"], row["to_step"] - 1
    kinks = [first, last, route.start, route.start + route.ramp, last if route.stop is None else route.stop]
    steps = {min(max(kink + offset, first), last) for kink in kinks for offset in (-1, 0, 1)}
    return [route.at(step) for step in sorted(steps)]


def _weights_in(route: Route, row: dict[str, Any]) -> tuple[float, float]:
    """Return the smallest and largest configured weight at the updates of a ledger row."""
    weights = [weight for weight, _ in _values_in(route, row)]
    return min(weights), max(weights)


def _closed_in(route: Route, row: dict[str, Any]) -> bool:
    """Return whether the mask or the forward factor stops the gradient at every update of the row."""
    return all(0 in values for values in _values_in(route, row))


def _close(a: float, b: float) -> bool:
    return math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)  # the ledger has six digits


def ledger_claims(config: Config, ledger: Rows, points: int, present: Collection[str]) -> Iterator[Claim]:
    """Check the ledger against the configuration: weights, and no routed gradient where the weight is 0.

    points: number of data points in training, counted once per epoch. present: the groups that have some.
    """
    routing, routes = config.routing, weights_of(config.routing)
    ends = sorted({(row["from_step"], row["to_step"]) for row in ledger})
    joined = bool(ends) and ends[0][0] == 0 and all(a[1] == b[0] for a, b in itertools.pairwise(ends))
    yield Claim("the ledger has no gap", joined, f"{len(ends)} windows, {ends[-1][1] if ends else 0} updates")
    for region in routing.regions:
        counted = sum(row["points"] or 0 for row in ledger if row["region"] == region)
        what = f"every data point of every epoch is in the ledger of '{region}'"
        yield Claim(what, counted == points, f"{counted:.0f} of {points}")
    for group in routing.groups:
        own = [row for row in ledger if row["group"] == group]
        if group in routing.left_out or (not own and group not in present):  # few data may have none of a group
            seen = sum(row["points"] or 0 for row in own)
            yield Claim(f"no data point of '{group}' was in the training", seen == 0, f"{seen:.0f} in the ledger")
            continue
        for region in routing.regions:
            spec = routes.get(group, {}).get(region, 1.0)
            route = read_route(spec, f"routing.routes.{group}.{region}")
            rows = [row for row in own if row["region"] == region]
            yield _weight_claim(group, region, route, rows)
            yield _gradient_claim(group, region, route, rows, config.losses.groups.get(group, 1.0) != 0)
    for region, settings in routing.regions.items():
        rows = [row for row in ledger if (row["group"], row["region"]) == ("all", region)]
        if settings.has_parameters or settings.module is not None:
            yield _frozen_claim(config, region, [row["shifted"] for row in rows if row["shifted"] is not None])


def _frozen_claim(config: Config, region: str, shifts: list[float]) -> Claim:
    what = f"'{region}' and its optimizer state stayed bit-identical in updates of groups that may not change it"
    if shifts:
        return Claim(what, max(shifts) == 0, f"largest change {max(shifts):g}")
    closed = any(row.get(region) == 0 for row in weights_of(config.routing).values())
    expected = closed and config.trainer.batches == "by_group"  # mixed batches may never hold such groups alone
    return Claim(what, not expected, "no such update was measured")


def _weight_claim(group: str, region: str, route: Route, rows: Rows) -> Claim:
    what = f"the weight of {group} in '{region}' was as configured"
    for row in rows:
        if row["weight_min"] is None or row["weight_max"] is None:
            return Claim(what, False, f"updates {row['from_step']} to {row['to_step']}: not in the ledger")
        low, high = _weights_in(route, row)
        if not (_close(row["weight_min"], low) and _close(row["weight_max"], high)):
            found = f"updates {row['from_step']} to {row['to_step']}: {row['weight_min']:g} to {row['weight_max']:g}"
            return Claim(what, False, f"{found}, configured {low:g} to {high:g}")
    low = min((row["weight_min"] for row in rows), default=math.nan)
    high = max((row["weight_max"] for row in rows), default=math.nan)
    return Claim(what, bool(rows), f"{low:g}" if low == high else f"{low:g} to {high:g}")


def _gradient_claim(group: str, region: str, route: Route, rows: Rows, trains: bool) -> Claim:
    """Check a group's task gradient: exactly 0 in windows whose weight was always 0; without any, not 0 throughout.

    A group that does not train, because its loss has weight 0, must not reach any region.
    """
    measured = [row for row in rows if row["routed"] is not None]
    silent = [row for row in measured if not trains or _closed_in(route, row)]
    largest = max((row["routed"] for row in (silent or measured)), default=math.nan)
    found = f"largest norm {largest:g} in {len(silent or measured)} windows"
    unrouted = max((row["unrouted"] or 0.0 for row in measured), default=0.0)
    if unrouted:
        found += f"; unrouted penalties {unrouted:g}, which may reach it"
    if len(measured) < len(rows):
        return Claim(f"{group}'s gradient in '{region}' was measured", False, f"{len(measured)} of {len(rows)} windows")
    if silent:
        return Claim(f"{group}'s task loss never reached '{region}'", largest == 0, found)
    return Claim(f"{group}'s task loss reached '{region}'", largest > 0, found)
