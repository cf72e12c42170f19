"""The table of `scripts/mask_design.sh`: problems by methods, mean over fresh seeds with 95 % intervals, and updates.

python scripts/mask_design_table.py PLACE… [--problems PROBLEM …] [--csv FILE]

A place is a folder of searches, such as `outputs/searches`, of which it reads `finals.csv` and `methods.csv`, or a file
that `--csv` wrote, such as that of another machine; of a problem that two places have, the last counts. Of each method
its first finalist counts, which was chosen before the finals. `+` is better and `−` worse than the hand-made mask, and
a method in bold is better than random search, too: only where the difference's interval excludes 0 (Welch, 95 % for all
comparisons of the row with the same mask together, Bonferroni). A second table has a verdict for each problem: better
or worse in a score and not the other way in any other.
"""

import argparse
import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gradroute.errors import UserError
from gradroute.reporting.intervals import shown
from gradroute.running.exit_status import guarded
from gradroute.search.finals import difference

METHODS = {"handmade": "hand-made", "control": "unrouted", "placebo": "placebo", "guess": "guess",
           "random": "random search", "search": "tpe", "pilot": "pilot", "learned": "learned"}  # fmt: skip
FOUND = ("guess", "random", "search", "pilot", "learned")  # not the hand-made mask and the controls
COSTS = {"search": "tpe"}  # names in methods.csv that differ
ABOUT = ("finalist", "seed", "overrides")
HIGHER = ("localization", "accuracy", "relearned")
COLUMNS = ("problem", "method", "updates", "objective", "seed", "value")


@dataclass
class Problem:
    """What the finals of a problem have: values by method, objective and seed, and the updates of each method."""

    values: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    updates: dict[str, int] = field(default_factory=dict)

    def add(self, method: str, objective: str, seed: int, value: float) -> None:
        """Keep a value."""
        self.values.setdefault(method, {}).setdefault(objective, {})[seed] = value

    @property
    def scores(self) -> list[str]:
        """The names of the objectives."""
        return list(dict.fromkeys(one for objectives in self.values.values() for one in objectives))

    def of(self, method: str, objective: str) -> list[float]:
        """Return a method's values over the seeds, none if it has no finals."""
        return [*self.values.get(method, {}).get(objective, {}).values()]


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def search(folder: Path) -> Problem:
    """Return the finals of a search: of each method its first finalist."""
    costs = {row["method"]: int(row["updates"]) for row in rows_of(folder / "methods.csv")}
    found, first = Problem(), dict[str, str]()
    for row in rows_of(folder / "finals.csv"):
        method = row["finalist"].split()[0]
        if first.setdefault(method, row["finalist"]) == row["finalist"]:
            for objective in [column for column in row if column not in ABOUT]:
                found.add(method, objective, int(row["seed"]), float(row[objective]))
    named = {method: COSTS.get(method, method) for method in found.values}
    found.updates = {method: costs[name] for method, name in named.items() if name in costs}
    return found


def collected(places: Sequence[Path]) -> dict[str, Problem]:
    """Return the problems of all places that have finals, by name. Raises: UserError if a place does not exist."""
    found: dict[str, Problem] = {}
    for place in places:
        if not place.exists():
            raise UserError(f"{place}: does not exist; give a folder of searches, such as outputs/searches, or a file")
        if place.is_dir():
            own = {path.parent.name: search(path.parent) for path in sorted(place.glob("*/search.json"))}
        else:
            own = {}
            for row in rows_of(place):
                problem = own.setdefault(row["problem"], Problem())
                problem.add(row["method"], row["objective"], int(row["seed"]), float(row["value"]))
                if row["updates"]:
                    problem.updates[row["method"]] = int(row["updates"])
        found.update({name: problem for name, problem in own.items() if problem.values})
    return found


def write(file: Path, problems: Mapping[str, Problem]) -> None:
    """Write the values of all problems as CSV."""
    with file.open("w", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        writer.writerow(COLUMNS)
        for name, problem in problems.items():
            for method, objectives in problem.values.items():
                for objective, values in objectives.items():
                    about = (name, method, problem.updates.get(method, ""), objective)
                    writer.writerows([*about, seed, f"{value:.6g}"] for seed, value in values.items())


def goal(objective: str) -> str:
    """Return whether higher or lower values are better."""
    return "higher" if objective in HIGHER else "lower"


def verdict(problem: Problem, method: str, objective: str, reference: str) -> str:
    """Return whether a method is better or worse than a reference, or `not shown`; "" if one has no two seeds."""
    ours, theirs = problem.of(method, objective), problem.of(reference, objective)
    if method == reference or min(len(ours), len(theirs)) < 2:
        return ""
    return difference(ours, theirs, goal(objective), len(problem.values) - 1).verdict


def cell(problem: Problem, method: str, objective: str) -> str:
    """Return a method's mean with its interval and marks."""
    if not problem.of(method, objective):
        return ""
    than = [verdict(problem, method, objective, reference) for reference in ("handmade", "random")]
    text = shown(problem.of(method, objective)) + {"better": " +", "worse": " −"}.get(than[0], "")
    return f"**{text}**" if method in FOUND and than == ["better"] * 2 else text


def whole(problem: Problem, method: str, reference: str) -> str:
    """Return the verdict over all scores of a problem."""
    found = {verdict(problem, method, objective, reference) for objective in problem.scores} - {"", "not shown"}
    return "mixed" if len(found) > 1 else found.pop() if found else "not shown"


def verdicts(problems: Mapping[str, Problem]) -> list[list[str]]:
    """Return a row for each method and reference with the verdict for each problem, the header first."""
    rows = [["method", "compared with", *problems]]
    for method in FOUND:
        for reference in ("handmade", "random"):
            cells = [whole(one, method, reference) if method in one.values else "" for one in problems.values()]
            rows += [[METHODS[method], METHODS[reference], *cells]] if method != reference and any(cells) else []
    return rows


def printed(rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    head = "| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0])
    return "\n".join([head, *("| " + " | ".join(row) + " |" for row in rows[1:])])


def table(problems: Mapping[str, Problem], names: Sequence[str]) -> list[list[str]]:
    """Return the rows of the table, the header first; problems without finals are named as such."""
    rows = [["problem", "score", *METHODS.values(), "updates"]]
    for name in names:
        problem = problems.get(name, Problem())
        said = ", ".join(f"{name} {problem.updates[one]:,}" for one, name in METHODS.items() if one in problem.updates)
        for objective in problem.scores:
            cells = [cell(problem, method, objective) for method in METHODS]
            rows.append([name, f"{objective} ({goal(objective)} is better)", *cells, said])
        if not problem.values:
            rows.append([name, "not measured", *[""] * len(METHODS), ""])
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write what it is made of with `--csv`."""
    about = __doc__ or ""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", type=Path, metavar="PLACE")
    parser.add_argument("--problems", nargs="+", help="their names; all that are there if none is given")
    parser.add_argument("--csv", type=Path, help="write the values to this file, too")
    given = parser.parse_args(arguments)
    found = collected(given.places)
    print(printed(table(found, given.problems or list(found))) + "\n\n" + printed(verdicts(found)))
    if given.csv:
        write(given.csv, found)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
