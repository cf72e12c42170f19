"""What each access profile of a model with modules knows of each group (GRAM): a table, and a sentence."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gradroute.records.metrics import DOSE, PROFILE
from gradroute.reporting.language_tables import Titled

LOSS, RATIO = "cross_entropy", "compute_ratio"


def _values(rows: Iterable[Mapping[str, Any]], metric: str) -> dict[tuple[str, str], float]:
    """Return a metric of every profile, by profile and group."""
    own = (row for row in rows if (row["head"], row["metric"]) == (PROFILE, metric))
    return {(row["region"], row["group"]): row["value"] for row in own}


def verdict(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence: each group's loss with its module and without, by the first profile; [] without profiles."""
    losses = _values(rows, LOSS)
    base = next((profile for profile, _ in losses), None)
    if base is None:
        return []
    core, *_ = base.split("+")
    groups = dict.fromkeys(group for _, group in losses)
    own = {group: losses.get((f"{core}+{group}", group)) for group in groups}
    said = [f"{group} {value:.3f} and {losses[base, group]:.3f}" for group, value in own.items()
            if value is not None and (base, group) in losses]  # fmt: skip
    return [f"Loss of each group with its module, and without (nats per token): {', '.join(said)}."] if said else []


def profile_tables(rows: Iterable[Mapping[str, Any]]) -> list[Titled]:
    """Return the loss of every profile on each group as a table, with compute ratios if there are any; else []."""
    rows = list(rows)
    losses, ratios = _values(rows, LOSS), _values(rows, RATIO)
    if not losses:
        return []
    profiles = list(dict.fromkeys(profile for profile, _ in losses))
    groups = list(dict.fromkeys(group for _, group in losses))
    measured = [group for group in groups if any(key[1] == group for key in ratios)]
    table = [
        [profile.replace(DOSE, ", dose "), *(losses.get((profile, group), math.nan) for group in groups),
         *(ratios.get((profile, group), math.nan) for group in measured)]
        for profile in profiles
    ]  # fmt: skip
    note = (
        "Cross-entropy in nats per token of the test documents. A dose multiplies the output of the profile's module."
    )
    note += " Ratio: updates of an unrouted training that the loss is worth, as a share of all." if measured else ""
    columns = ["profile", *groups, *(f"ratio, {group}" for group in measured)]
    return [("Loss of each access profile on each group", columns, table, note)]
