"""Read the final values of finished runs, from their folders or from a file that keeps them without the folders."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradroute.comparison.runs import KEYS, distinct, find_runs, read_run

Run = tuple[str, int]  # experiment and seed
Values = Mapping[tuple[str, str, str, str], float]  # by head, region, group and metric
COLUMNS = ("experiment", "seed", *KEYS, "value")


def collected(places: Sequence[str], metrics: Sequence[str]) -> dict[Run, Values]:
    """Return the values of these metrics of every run below `places`: folders, globs, or files that `write` wrote."""
    found: dict[Run, dict[tuple[str, str, str, str], float]] = {}
    for file in [place for place in places if place.endswith(".csv")]:
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


def write(file: Path, runs: Mapping[Run, Values]) -> None:
    """Write the values as CSV."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for (name, seed), values in sorted(runs.items()):
            writer.writerows([name, seed, *key, f"{value:.6g}"] for key, value in values.items())
