"""The compute ratio: how many updates of ordinary training a loss is worth (GRAM App. M).

The validation curve of an unrouted training is fitted by L(s) = A (s + s0)^-a, by least squares of log L. A loss is
worth the number of updates s at which the curve has it; the ratio to the number that the trained model is worth is 1
for that model and lower for one that knows less.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics

LEAST = 4  # points of a curve
OFFSETS = np.logspace(-2, 4, 601)  # s0, as shares of the first update that was measured
FLATTEST = 0.001  # exponent; below it, a curve says nothing about updates


@dataclass(frozen=True)
class PowerLaw:
    """A fitted curve: scale A, exponent a and offset s0."""

    scale: float
    exponent: float
    offset: float

    def loss(self, updates: float) -> float:
        """Return the loss after a number of updates."""
        return self.scale * math.pow(updates + self.offset, -self.exponent)

    def updates(self, loss: float) -> float:
        """Return the number of updates that a loss is worth, at least 0.001."""
        exponent = min(math.log(self.scale / loss) / self.exponent, 600.0)
        return max(math.exp(exponent) - self.offset, 0.001)


def fitted(points: Sequence[tuple[int, float]]) -> PowerLaw | None:
    """Return the power law through points of updates and loss; None for fewer than four, or losses that do not fall."""
    if len(points) < LEAST:
        return None
    updates, logs = np.array([x for x, _ in points], float), np.log([y for _, y in points])
    best, found = math.inf, None
    for offset in OFFSETS * updates[0]:
        slope, start = np.polyfit(np.log(updates + offset), logs, 1)
        error = float(((np.log(updates + offset) * slope + start - logs) ** 2).sum())
        if error < best:
            best, found = error, PowerLaw(math.exp(start), -float(slope), float(offset))
    return found if found is not None and found.exponent > FLATTEST else None


def curve_of(run: Path, group: str, metric: str) -> list[tuple[int, float]]:
    """Return a run's test losses of a group while its model was trained, by update, ascending."""
    rows = read_metrics(run, read_manifest(run))
    own = {int(row["step"]): float(row["value"]) for row in rows
           if (row["split"], row["head"], row["group"], row["metric"]) == ("test", "model", group, metric)}  # fmt: skip
    return sorted((step, value) for step, value in own.items() if step > 0 and value > 0)
