"""Figures that a measurement is judged by: a value with its range, beside its target."""

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One figure, measured once in every round.

    target: the value to reach, or None; `at_most`: whether smaller is better.
    """

    name: str
    values: Sequence[float]
    target: float | None = None
    at_most: bool = False

    def row(self) -> dict[str, Any]:
        """Return the median, the smallest and the largest value, and whether the median reaches the target."""
        value = statistics.median(self.values)
        reached = None if self.target is None else value <= self.target if self.at_most else value >= self.target
        low, high = min(self.values), max(self.values)
        return {"name": self.name, "value": value, "low": low, "high": high, "target": self.target, "reached": reached}

    def shown(self) -> dict[str, str]:
        """Return the same as text, for a table."""
        row, sign = self.row(), "≤" if self.at_most else "≥"
        return {
            "figure": self.name,
            "median (range)": f"{row['value']:.3g} ({row['low']:.3g} to {row['high']:.3g})",
            "target": "" if self.target is None else f"{sign} {self.target:g}",
            "reached": {None: "", True: "yes", False: "no"}[row["reached"]],
        }


def write(path: Path, figures: Sequence[Figure]) -> None:
    """Write figures as a JSON list of name, value, low, high, target and reached."""
    path.write_text(json.dumps([figure.row() for figure in figures], indent=2) + "\n")
