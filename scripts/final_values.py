"""Read the final values of finished runs, from their folders or from a file that keeps them without the folders."""

import argparse
import csv
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path

from gradroute.comparison.runs import KEYS, distinct, find_runs, read_run
from gradroute.errors import UserError
from gradroute.records.metrics import RELEARNED
from gradroute.reporting.intervals import shown
from gradroute.reporting.language_tables import STAGES

Run = tuple[str, int]  # experiment and seed
Values = Mapping[tuple[str, str, str, str], float]  # by head, region, group and metric
COLUMNS = ("experiment", "seed", *KEYS, "value")


def collected(places: Sequence[str], metrics: Sequence[str]) -> dict[Run, Values]:
    """Return the values of these metrics of every run below `places`: folders, globs, or files that `write` wrote."""
    found: dict[Run, dict[tuple[str, str, str, str], float]] = {}
    for file in [place for place in places if place.endswith(".csv")]:
        if not Path(file).is_file():
            raise UserError(f"{file}: does not exist; give run folders, a glob in quotes, or a file that --csv wrote")
        with Path(file).open(newline="") as lines:
            for row in csv.DictReader(lines):
                key = (row["head"], row["region"], row["group"], row["metric"])
                found.setdefault((row["experiment"], int(row["seed"])), {})[key] = float(row["value"])
    if folders := [place for place in places if not place.endswith(".csv")]:
        reads, _ = distinct(read for read in map(read_run, find_runs(folders)) if read.left_out is None)
        for read in reads:
            rows = [row for row in read.rows if row["metric"] in metrics]
            found[read.settings["name"], read.settings["seed"]] = {
                (row["head"], row["region"], row["group"], row["metric"]): row["value"] for row in rows
            }
    return dict(found)


def unlearned(heads: Container[str]) -> str:
    """Return the head of the last step before relearning."""
    return [head for head in STAGES if head in heads][-1]


def last_relearned(heads: Iterable[str]) -> str:
    """Return the head of the model that was relearned from the most documents."""
    return max((head for head in heads if head.startswith(RELEARNED)), key=lambda head: int(head.split("_")[-1]))


def write(file: Path, runs: Mapping[Run, Values]) -> None:
    """Write the values as CSV."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (name, seed), values in sorted(runs.items()):
            writer.writerows([name, seed, *key, f"{value:.6g}"] for key, value in values.items())


def print_table(
    about: str | None, metrics: Sequence[str], columns: Sequence[str],
    methods: Mapping[str, tuple[str, Callable[[Values], Sequence[float | None]]]], form: str,
) -> None:  # fmt: skip
    """Print means over seeds, with intervals, of the runs on the command line; with `--csv`, write their values.

    Args:
        about: the script's help. metrics: those that the table is made of.
        methods: by experiment, the name in the table, and what makes a run's numbers for `columns`, None for none.
        form: of the numbers.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    runs = collected(given.runs, metrics)
    print(f"| method | {' | '.join(columns)} | n |\n|{'---|' * (len(columns) + 2)}")
    for name, (title, row) in methods.items():
        rows = [row(values) for (own, _), values in sorted(runs.items()) if own == name]
        known = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        cells = [shown(column, form) if column else "" for column in known] or [""] * len(columns)
        print(f"| {' | '.join([title, *cells])} | {len(rows)} |")
    if given.csv:
        write(given.csv, runs)
