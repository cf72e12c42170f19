"""What the methods of unlearning did to the stories: the README's table, and what is asked of Expand, Route, Ablate.

python scripts/stories_table.py 'outputs/stories_*'                       prints two Markdown tables
python scripts/stories_table.py 'outputs/stories_*' --csv FILE            and writes every number to a file

Losses are in nats per token on the test documents, means over seeds with the half-width of the 95 % t-interval.
"""

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gradroute.collecting import Read, find_runs, read_run
from gradroute.intervals import interval
from gradroute.language_page import STAGES

FRACTION = "routing.labelled_fraction"
ORDER = ("base", "control", "filtering", "rmu", "demix", "sgtm", "era", "era_rmu")
NAMES = {"base": "base", "control": "control: expanded, ablated, not routed", "filtering": "data filtering",
         "rmu": "RMU", "demix": "DEMix + ablate", "sgtm": "SGTM", "era": "ERA", "era_rmu": "ERA + RMU"}  # fmt: skip
Loss = dict[tuple[str, str], float]  # by head and group


def loss_of(read: Read, metric: str = "cross_entropy") -> Loss:
    """A run's losses; `end` is the head of the last step before relearning."""
    found = {(r["head"], r["group"]): r["value"] for r in read.rows if r["metric"] == metric}
    heads = [head for head in STAGES if (head, "forget") in found]
    for group in ("forget", "retain"):
        found["end", group] = found[heads[-1], group]
    return found


def shown(values: Sequence[float]) -> str:
    """Mean and half-width, the latter where there are several."""
    half = interval(values)
    return f"{mean(values):.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")


def by_method(reads: Sequence[Read]) -> dict[tuple[str, float], dict[int, Loss]]:
    """Losses by method and labelled fraction, then seed."""
    found: dict[tuple[str, float], dict[int, Loss]] = {}
    for read in reads:
        if read.left_out is None:
            key = read.settings["name"].removeprefix("stories_"), float(read.settings[FRACTION])
            found.setdefault(key, {})[read.settings["seed"]] = loss_of(read)
    return dict(sorted(found.items(), key=lambda item: (-item[0][1], ORDER.index(item[0][0]))))


def paired(ours: dict[int, Loss], other: dict[int, Loss], of: Callable[[Loss], float]) -> list[float]:
    """Differences between two methods, seed by seed."""
    return [of(ours[seed]) - of(other[seed]) for seed in sorted(ours.keys() & other.keys())]


def claims(found: dict[tuple[str, float], dict[int, Loss]]) -> list[tuple[str, str, bool]]:
    """What is asked: a sentence, the measured value, and whether it holds by more than the interval."""
    lines = []

    def claim(what: str, values: list[float], least: float = 0.0) -> None:
        half = 0.0 if math.isnan(interval(values)) else interval(values)
        lines.append((what, shown(values), mean(values) - half > least))

    control = found.get(("control", 1.0), {})
    for (method, fraction), ours in found.items():
        if method != "era":
            continue
        for head, when in (("end", "after ablation"), ("model_relearned_64", "after relearning on 64")):
            if control:
                what = f"ERA, {fraction:.0%} labels: forget loss {when}, minus the control's"
                claim(what, paired(ours, control, lambda loss, head=head: loss[head, "forget"]))  # type: ignore[misc]
            rises = {g: [run[head, g] - run["model", g] for run in ours.values()] for g in ("forget", "retain")}
            ratio = mean(rises["forget"]) / mean(rises["retain"]) if mean(rises["retain"]) > 0 else math.inf
            what = f"ERA, {fraction:.0%} labels: rise of the forget loss {when}, over that of the retain loss"
            lines.append((what, f"{ratio:.1f}", ratio >= 3))
        if filtering := found.get(("filtering", fraction)):
            what = f"ERA, {fraction:.0%} labels: forget loss after relearning on 64, minus filtering's"
            claim(what, paired(ours, filtering, lambda loss: loss["model_relearned_64", "forget"]))
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, folders of them, or globs in quotes")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    a = parser.parse_args()
    reads = [read_run(run) for run in find_runs(a.paths)]
    found = by_method(reads)
    print("| method | labels | seeds | forget, before relearning | from 4 | from 16 | from 64 | retain, before |")
    print("|---|---|---|---|---|---|---|---|")
    for (method, fraction), runs in found.items():
        cells = [[run[head, "forget"] for run in runs.values()]
                 for head in ("end", *(f"model_relearned_{n}" for n in (4, 16, 64)))]  # fmt: skip
        cells.append([run["end", "retain"] for run in runs.values()])
        labels = "none" if method in ("base", "control") else f"{fraction:.0%}"
        print(f"| {NAMES[method]} | {labels} | {len(runs)} | {' | '.join(map(shown, cells))} |")
    print("\n| asked | measured | holds |\n|---|---|---|")
    for what, value, holds in claims(found):
        print(f"| {what} | {value} | {'yes' if holds else '**no**'} |")
    if a.csv:
        write(a.csv, reads)


def write(path: Path, reads: Sequence[Read]) -> None:
    """Every final loss of every run."""
    columns = ("name", FRACTION, "seed", "head", "group", "metric", "value")
    rows: list[dict[str, Any]] = []
    for read in (read for read in reads if read.left_out is None):
        own = {key: read.settings[key] for key in ("name", FRACTION, "seed")}
        rows += [own | {key: row[key] for key in ("head", "group", "metric", "value")} for row in read.rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
