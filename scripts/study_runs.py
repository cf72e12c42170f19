"""Make the runs of a study, several at a time, and read their losses."""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from gradroute.config.compose import configuration
from gradroute.errors import UserError, first_line
from gradroute.records.metrics import RELEARNED
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics


def make(given: list[str]) -> Path | str:
    """Make a run, or find it finished; return its folder, or why it failed. Raises: UserError for a mistake."""
    from gradroute.running.runner import execute

    (outcome,) = execute([configuration(given)], reuse=True, watch=lambda step, rows: None)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome if isinstance(outcome, Path) else first_line(outcome)


def made(runs: Sequence[list[str]], jobs: int) -> Iterator[Path | str]:
    """Make runs, `jobs` at a time, and yield each as soon as it and those before it are made."""
    if jobs == 1:
        yield from map(make, runs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # of the processes
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, runs)


def losses(run: Path, split: str) -> dict[tuple[str, str], float]:
    """Return the last loss of each head and group of a split; of relearning on validation documents, the lowest."""
    found: dict[tuple[str, str], float] = {}
    for row in read_metrics(run, read_manifest(run)):
        if row["split"] == split and row["metric"] == "cross_entropy":
            key = row["head"], row["group"]
            lowest = split == "validation" and row["head"].startswith(RELEARNED) and key in found
            found[key] = min(found[key], row["value"]) if lowest else row["value"]
    return found
