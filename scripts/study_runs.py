"""Make the runs of a study of which no numbers are kept, several at a time, and read their losses."""

import argparse
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

from kept import Kept, Key, Numbers

from gradroute.config.compose import configuration
from gradroute.errors import UserError, first_line
from gradroute.records.metrics import RELEARNED
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics


@dataclass(frozen=True)
class Planned:
    """A run of a study.

    Attributes: `said`, its name in a message; `given`, its overrides; `read`, which returns the rows of its folder.
    """

    said: str
    given: list[str]
    read: Callable[[Path], Mapping[Key, Numbers]]


def parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None, jobs: int = 2) -> argparse.Namespace:
    """Add the options that all studies have, and parse. `jobs` is the default of --jobs."""
    parser.add_argument("--jobs", type=int, default=jobs, help="processes (default %(default)s)")
    parser.add_argument("--results", type=Path, help="a CSV file of numbers; runs whose numbers it has are not made")
    parser.add_argument("--table", action="store_true", help="make no runs; the tables have the numbers of --results")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="of every run")
    found = parser.parse_intermixed_args(arguments)  # overrides may follow options
    if found.table and found.results is None:
        parser.error("--table: needs --results FILE.csv, whose numbers it shows")
    return found


def make_and_keep(plans: Sequence[Planned], kept: Kept, jobs: int) -> None:
    """Make runs, and keep the numbers of each as it ends; print why a run failed."""
    for plan, outcome in zip(plans, made([plan.given for plan in plans], jobs), strict=True):
        if isinstance(outcome, Path):
            kept.add(plan.read(outcome))
        else:
            print(f"{plan.said}: {outcome}")


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
