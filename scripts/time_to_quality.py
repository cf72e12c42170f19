"""Find the cheapest preset of the MNIST split that reaches the published quality.

OMP_NUM_THREADS=1 python scripts/time_to_quality.py --seeds 3 --results outputs/measured/time_to_quality.csv

What is tried, and the rule, are fixed here, before any run:

- A candidate is `trainer=fast` with other epochs, batch size and learning rate. The first is the preset of 2026-11-24.
  Two, 6 epochs of 128 and of 96, were added when 8 epochs of 192 had missed the quality with its first seed: they make
  more updates of fewer images.
- It reaches the quality if the bottom certificate's squared error, the mean over the seeds, is at least 0.32 on digits
  0-4 and at most 0.095 on digits 5-9. A candidate whose first seed misses a bound by more than 0.01 gets no more seeds.
- Its cost is that of its updates. The updates of all candidates are timed in turn, in one process, after the runs.
- The cheapest candidate that reaches the quality is chosen.

The same command continues a search that was stopped.
"""

import argparse
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

from figures import Figure
from kept import Kept
from rich.console import Console
from rich.table import Table
from split_speed import ours, read
from turns import timed

from gradroute.config.compose import configuration
from gradroute.records.metrics import final_rows
from gradroute.records.tables import read_metrics
from gradroute.running.exit_status import guarded
from gradroute.running.runner import execute

CANDIDATES: dict[str, dict[str, float]] = {  # epochs, batch size, learning rate
    "12 epochs of 192": {"epochs": 12, "batch_size": 192, "lr": 0.002},
    "8 epochs of 192": {"epochs": 8, "batch_size": 192, "lr": 0.002},
    "6 epochs of 192": {"epochs": 6, "batch_size": 192, "lr": 0.002},
    "6 epochs of 128": {"epochs": 6, "batch_size": 128, "lr": 0.002},
    "6 epochs of 96": {"epochs": 6, "batch_size": 96, "lr": 0.0015},
    "5 epochs of 160": {"epochs": 5, "batch_size": 160, "lr": 0.002},
    "6 epochs of 256": {"epochs": 6, "batch_size": 256, "lr": 0.003},
    "8 epochs of 288": {"epochs": 8, "batch_size": 288, "lr": 0.002},
    "7 epochs of 256": {"epochs": 7, "batch_size": 256, "lr": 0.0025},
    "8 epochs of 384": {"epochs": 8, "batch_size": 384, "lr": 0.003},
    "9 epochs of 512": {"epochs": 9, "batch_size": 512, "lr": 0.003},
}
LEAST, MOST, MARGIN = 0.32, 0.095, 0.01  # bounds of the errors on digits 0-4 and 5-9, and what a first seed may miss
TODAY = next(iter(CANDIDATES))
IMAGES, UPDATES = 60_000, 20  # of an epoch; of one measurement


def overrides(candidate: str) -> list[str]:
    """Return the overrides of `trainer=fast` that make a candidate."""
    return ["trainer=fast", *(f"trainer.{key}={value}" for key, value in CANDIDATES[candidate].items())]


def errors(candidate: str, seed: int, more: Sequence[str]) -> dict[str, float]:
    """Train a candidate; return the bottom certificate's errors by group, and the seconds that it took."""
    started = time.perf_counter()
    (run,) = execute([configuration([*overrides(candidate), "steps=[train,evaluate]", f"seed={seed}", *more])])
    if isinstance(run, Exception):
        raise run
    rows = [row for row in final_rows(read_metrics(run)) if (row["head"], row["region"]) == ("certificate", "bottom")]
    found = {row["group"]: row["value"] for row in rows if row["metric"] == "mse"}
    return {"low": found["digits_0_4"], "high": found["digits_5_9"], "seconds": time.perf_counter() - started}


def promising(low: float, high: float) -> bool:
    """Return whether a first seed is close enough to the bounds for further ones."""
    return low >= LEAST - MARGIN and high <= MOST + MARGIN


def costs(rounds: int) -> dict[str, list[float]]:
    """Return the seconds of each candidate's whole training, from the time of its updates in every round."""
    configs = {name: configuration([*overrides(name), "trainer.device=cpu"]) for name in CANDIDATES}
    data = read(configs[TODAY], "cpu")
    steps = {name: ours(data, [one], UPDATES * one.trainer.batch_size) for name, one in configs.items()}
    updates = {name: one.trainer.epochs * -(-IMAGES // one.trainer.batch_size) for name, one in configs.items()}
    found = timed(steps, rounds)
    return {name: [taken / UPDATES * updates[name] for taken in seconds] for name, seconds in found.items()}


def shown(results: Mapping[tuple[str, ...], Mapping[str, float]], seconds: Mapping[str, Sequence[float]]) -> Table:
    """Return the table of candidates, with the chosen one marked."""
    reached = {}
    for name in CANDIDATES:
        own = [numbers for key, numbers in results.items() if key[0] == name]
        low, high = (fmean(one[key] for one in own) if own else float("nan") for key in ("low", "high"))
        reached[name] = (len(own), low, high, low >= LEAST and high <= MOST)
    most = max(count for count, *_ in reached.values())
    good = [name for name, (count, _, _, fine) in reached.items() if fine and count == most]
    chosen = min(good, key=lambda name: median(seconds[name]), default=None)
    table = Table("candidate", "seeds", "digits 0-4", "digits 5-9", "time, to that of the first", "")
    for name, (count, low, high, _) in reached.items():
        ratio = Figure(name, [a / b for a, b in zip(seconds[name], seconds[TODAY], strict=True)])
        mark = "chosen" if name == chosen else ""
        table.add_row(name, str(count), f"{low:.3f}", f"{high:.3f}", ratio.shown()["median (range)"], mark)
    return table


def main() -> None:
    """Train, time, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=5, help="of the timing (default 5)")
    parser.add_argument(
        "--results", type=Path, metavar="FILE.csv", help="keep the numbers there, and continue from them"
    )
    parser.add_argument("overrides", nargs="*", help="of every run")
    a = parser.parse_args()
    kept = Kept(a.results, ("candidate", "seed"), ("low", "high", "seconds"))
    for seed in range(a.seeds):
        for name in CANDIDATES:
            first = kept.found.get((name, "0"))
            if (name, str(seed)) in kept.found or (seed and first and not promising(first["low"], first["high"])):
                continue
            kept.add({(name, str(seed)): errors(name, seed, a.overrides)})
    Console(width=140).print(shown(kept.found, costs(a.rounds)))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
