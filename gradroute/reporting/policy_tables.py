"""The sentences and the table of a policy's page."""

import math
from collections.abc import Mapping
from typing import Any

from gradroute.reporting.plots_policy import title

Rows = list[dict[str, Any]]


def _values(rows: Rows, metric: str) -> dict[tuple[str, str], float]:
    return {(r["head"], r["region"]): r["value"] for r in rows if r["metric"] == metric}


def verdict(rows: Rows, names: Mapping[str, Any]) -> list[str]:
    """Return sentences about the final returns of every policy, and the exact ceilings."""
    found = _values(rows, "return")
    if not found:
        return []
    said = "; ".join(f"{title(*key)} {value:.3f}" for key, value in found.items())
    lines = [f"True return, mean over the steps of the test worlds: {said}."]
    if exact := names.get("ceilings"):
        lines.append("Exact: " + "; ".join(f"{name} {value:.3f}" for name, value in exact.items()) + ".")
    return lines


def return_table(rows: Rows, groups: list[str]) -> tuple[str, list[str], list[list[Any]], str]:
    """Return title, columns, rows and note of the table of returns, and of the shares of endings."""
    true, greedy, seen = (_values(rows, metric) for metric in ("return", "greedy_return", "seen_return"))
    shares = {(r["head"], r["region"], r["group"]): r["value"] for r in rows if r["metric"] == "share"}
    table = [
        [
            title(*key),
            value,
            greedy.get(key, math.nan),
            seen.get(key, math.nan),
            *(shares.get((*key, group), math.nan) for group in groups),
        ]
        for key, value in true.items()
    ]
    note = (
        "Returns are discounted, and means over steps; actions are drawn or, if greedy, the most likely ones. "
        "Groups: share of the steps of the test worlds."
    )
    return "Returns of each policy", ["policy", "true return", "greedy", "seen return", *groups], table, note
