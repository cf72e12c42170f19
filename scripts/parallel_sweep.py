"""Measure how much faster a sweep is in one joblib process per core than with one run after the other.

Each round runs both sweeps, in random order, in fresh output folders. Prints one line of JSON: the seconds of each, and
the median, smallest and largest ratio.

usage: python scripts/parallel_sweep.py [--rounds 3] [--jobs 8] [trainer=smoke …]
"""

import argparse
import json
import random
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from gradroute.records.provenance import hardware
from gradroute.running.exit_status import guarded


def _seconds(command: list[str], place: Path) -> float:
    began = time.perf_counter()
    subprocess.run(command, cwd=place, check=True, capture_output=True)
    return time.perf_counter() - began


def main() -> None:
    """Time both kinds of sweep and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8)
    parser.add_argument("overrides", nargs="*", help="overrides of every run")
    given = parser.parse_args()
    machine, order = hardware(), random.Random(0)
    seeds = ",".join(str(seed) for seed in range(given.jobs))
    sweep = ["gradroute-run", "-m", f"seed={seeds}", *given.overrides]
    sides = {
        "serial": sweep,
        "joblib": [*sweep, "hydra/launcher=joblib", f"hydra.launcher.n_jobs={machine['cores']}"],
    }
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(given.rounds):
        for name in order.sample(list(sides), len(sides)):
            with tempfile.TemporaryDirectory() as place:
                taken[name].append(_seconds(sides[name], Path(place)))
    ratios = [serial / joblib for serial, joblib in zip(taken["serial"], taken["joblib"], strict=True)]
    print(json.dumps({
        "jobs": given.jobs, "overrides": given.overrides,
        **{f"{name}_seconds": [round(s, 1) for s in seconds] for name, seconds in taken.items()},
        "ratio": round(statistics.median(ratios), 2), "smallest": round(min(ratios), 2),
        "largest": round(max(ratios), 2), **machine,
    }))  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(guarded(main))
