"""The table of `scripts/mask_design.sh`: problems by methods, mean over fresh seeds with 95 % intervals, and updates.

python scripts/mask_design_table.py outputs/searches [PROBLEM …] [--csv FILE]

It reads `finals.csv` and `methods.csv` of every search. Of each method its first finalist counts, which was chosen
before the finals. A difference to the hand-made mask is told only where its interval (Welch, 95 % for all comparisons
of the row together, Bonferroni) excludes 0.
"""

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from gradroute.reporting.intervals import shown
from gradroute.search.finals import difference

METHODS = {"handmade": "hand-made", "control": "unrouted", "placebo": "placebo", "random": "random search",
           "search": "tpe", "pilot": "pilot", "learned": "learned"}  # fmt: skip
COSTS = {"search": "tpe"}  # names in methods.csv that differ
ABOUT = ("finalist", "seed", "overrides")
HIGHER = ("localization", "accuracy", "relearned")


def read(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open() as file:
        return list(csv.DictReader(file))


def values(folder: Path) -> tuple[list[str], dict[str, dict[str, list[float]]]]:
    """Return a search's objectives, and by method and objective the values over seeds of its first finalist."""
    rows = read(folder / "finals.csv")
    objectives = [column for column in (rows[0] if rows else {}) if column not in ABOUT]
    first: dict[str, str] = {}
    for row in rows:
        first.setdefault(row["finalist"].split()[0], row["finalist"])
    own = {kind: [row for row in rows if row["finalist"] == name] for kind, name in first.items()}
    return objectives, {
        kind: {one: [float(row[one]) for row in found] for one in objectives} for kind, found in own.items()
    }


def cell(ours: Sequence[float], theirs: Sequence[float], goal: str, comparisons: int) -> str:
    """Return a mean with its interval, marked if it is better (+) or worse (-) than the hand-made mask."""
    if min(len(ours), len(theirs)) < 2 or ours is theirs:
        return shown(ours)
    mark = {"better": " +", "worse": " −"}
    return shown(ours) + mark.get(difference(ours, theirs, goal, comparisons).verdict, "")


def table(folder: Path, problems: Sequence[str]) -> list[list[str]]:
    """Return the rows of the table, the header first; problems without finals are named as such."""
    rows = [["problem", "score", *METHODS.values(), "updates"]]
    for problem in problems:
        objectives, found = values(folder / problem)
        if not objectives:
            rows.append([problem, "not measured", *[""] * len(METHODS), ""])
            continue
        costs = {row["method"]: row["updates"] for row in read(folder / problem / "methods.csv")}
        said = ", ".join(f"{method} {updates}" for method, updates in costs.items())
        for one in objectives:
            goal = "higher" if one in HIGHER else "lower"
            theirs = found.get("handmade", {}).get(one, [])
            others = sum(kind in found for kind in METHODS) - 1
            cells = [cell(found[k][one], theirs, goal, max(1, others)) if k in found else "" for k in METHODS]
            rows.append([problem, f"{one} ({goal} is better)", *cells, said])
    return rows


def main() -> None:
    """Print the table, and write it with `--csv`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path, help="the folder of searches, such as outputs/searches")
    parser.add_argument("problems", nargs="*", help="their names; all that are there if none is given")
    parser.add_argument("--csv", type=Path, help="write the rows to this file, too")
    given = parser.parse_args()
    there = sorted(path.parent.name for path in given.folder.glob("*/search.json"))
    rows = table(given.folder, given.problems or there)
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows[1:]:
        print("| " + " | ".join(row) + " |")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


if __name__ == "__main__":
    main()
