"""Print what each method of `scripts/profiles.sh` gives and withholds, in Markdown, from finished runs.

`RUNS` may also be a file that `--csv` wrote, such as that of another machine.

usage: python scripts/profiles_table.py RUNS… [--csv FILE]
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from gradroute.comparison.runs import Read, distinct, find_runs, read_run
from gradroute.records.metrics import RELEARNED
from gradroute.reporting.intervals import shown

GROUPS = ("sea", "farm", "town", "castle")
SEA = "sea"  # the only group that is relearned, that the adapter holds, and that maximum entropy unlearns
EVERY = "+".join(("core", *GROUPS))
COLUMNS = (
    "core", "a group, given", "a group, withheld", "the sea, given", "the sea, withheld", "the sea, relearned"
)  # fmt: skip
Losses = Mapping[tuple[str, str, str], float]  # by head, region and group
Run = tuple[str, int]  # name and seed


@dataclass(frozen=True)
class Method:
    """A method's name in the table, and where its runs keep the losses: head and region of what withholds and gives.

    Args:
        withheld: the model that is handed out to those who may have the core only; none where nothing is withheld.
        given: the model that is handed out with a group; `{}` stands for the group.
        groups: the groups that the method treats.
    """

    title: str
    withheld: tuple[str, str] | None = ("profile", "core")
    given: tuple[str, str] | None = ("profile", "core+{}")
    groups: Sequence[str] = GROUPS

    def row(self, losses: Losses) -> list[float | None]:
        """Return a run's losses, in nats per token, in the order of `COLUMNS`; None where a method has none."""

        def loss(model: tuple[str, str] | None, *groups: str) -> float | None:
            found = [(model[0], model[1].format(group), group) for group in groups] if model else []
            return mean(losses[key] for key in found) if found else None

        again = [value for (head, _, group), value in losses.items() if head.startswith(RELEARNED) and group == SEA]
        core = loss(self.withheld or self.given, "core")
        models = (self.given, self.withheld)
        some = [loss(model, *self.groups) if len(self.groups) > 1 else None for model in models]
        return [core, *some, *(loss(model, SEA) for model in models), again[0] if self.withheld else None]


METHODS = {
    "profiles": Method("GRAM"),
    "profiles_filtering": Method("filtering: the core's documents alone", given=None),
    "profiles_experts": Method("DEMix", withheld=("profile", "core+own")),
    "profiles_adapter": Method(
        "an adapter beside a frozen core", ("model_ablated", "sea"), ("model", "all"), groups=[SEA]
    ),
    "profiles_max_entropy": Method("maximum entropy", ("model_unlearned", "all"), None, groups=[SEA]),
    "profiles_half_labels": Method("GRAM, half of the labels"),
    "profiles_control": Method("no routes", None, ("profile", EVERY)),
}


def losses_of(read: Read) -> Losses:
    """Return a run's cross-entropies."""
    rows = [row for row in read.rows if row["metric"] == "cross_entropy"]
    return {(row["head"], row["region"], row["group"]): row["value"] for row in rows}


def known(file: Path) -> dict[Run, Losses]:
    """Return what `--csv` wrote."""
    found: dict[Run, dict[tuple[str, str, str], float]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            own = found.setdefault((row["experiment"], int(row["seed"])), {})
            own[row["head"], row["region"], row["group"]] = float(row["cross_entropy"])
    return dict(found)


def write(file: Path, runs: Mapping[Run, Losses]) -> None:
    """Write every cross-entropy."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(["experiment", "seed", "head", "region", "group", "cross_entropy"])
        for (name, seed), losses in sorted(runs.items()):
            writer.writerows([name, seed, *key, f"{value:.6g}"] for key, value in losses.items())


def main() -> None:
    """Print the table; with `--csv`, write what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    runs: dict[Run, Losses] = {}
    for file in [Path(place) for place in given.runs if place.endswith(".csv")]:
        runs |= known(file)
    if folders := [place for place in given.runs if not place.endswith(".csv")]:
        finished = [read for read in map(read_run, find_runs(folders)) if read.left_out is None]
        runs |= {(read.settings["name"], read.settings["seed"]): losses_of(read) for read in distinct(finished)[0]}
    print(f"| method | {' | '.join(COLUMNS)} | n |\n|{'---|' * (len(COLUMNS) + 2)}")
    for name, method in METHODS.items():
        rows = [method.row(losses) for (own, _), losses in sorted(runs.items()) if own == name]
        columns = [[value for value in column if value is not None] for column in zip(*rows, strict=True)]
        cells = [shown(column) if column else "" for column in columns] or [""] * len(COLUMNS)
        print(f"| {' | '.join([method.title, *cells])} | {len(rows)} |")
    if given.csv:
        write(given.csv, runs)


if __name__ == "__main__":
    main()
