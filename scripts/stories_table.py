"""Print the losses of every unlearning method on the stories, and test claims about Expand, Route, Ablate.

python scripts/stories_table.py 'outputs/stories_*' 'outputs/slow_*'              prints two Markdown tables
python scripts/stories_table.py 'outputs/stories_*' 'outputs/slow_*' --csv FILE   and writes every number to a file

Runs called slow_METHOD are those of `scripts/stories_relearning.sh`, which relearned at another rate.
Losses are in nats per token on the test documents, means over seeds with the half-width of the 95 % t-interval.
"""

import argparse
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from final_values import unlearned

from gradroute.comparison.runs import Read, find_runs, read_run
from gradroute.reporting.intervals import interval, shown
from gradroute.running.exit_status import guarded

FRACTION = "routing.labelled_fraction"
NAMES = {  # by the runs' names, in the order of the table; untuned: with the settings of the experiment's file
    "base": "base", "control": "control: expanded, ablated, not routed", "filtering": "data filtering",
    "rmu": "RMU, untuned", "max_entropy": "maximum entropy, untuned",
    "gradient_difference": "gradient difference, untuned", "undo": "UNDO, untuned",
    "demix": "DEMix + ablate", "sgtm": "SGTM", "era": "ERA", "era_rmu": "ERA + RMU, untuned",
}  # fmt: skip
ORDER = list(NAMES)
WHEN = {"end": "once unlearned", "model_relearned_64": "after relearning on 64", "slow": "after slow relearning"}
Loss = dict[tuple[str, str], float]  # by head and group
CELLS = [(head, group) for head in ("model", "end") for group in ("forget", "retain")]
CELLS += [(f"model_relearned_{n}", "forget") for n in (4, 16, 64)] + [("model_relearned_64", "retain")]
CELLS += [("slow", group) for group in ("forget", "retain")]


def loss_of(read: Read, metric: str = "cross_entropy") -> Loss:
    """Return a run's losses; `end` is the head of the last step before relearning."""
    found = {(r["head"], r["group"]): r["value"] for r in read.rows if r["metric"] == metric}
    if read.settings["name"].startswith("slow_"):
        return {("slow", group): value for (head, group), value in found.items() if head == "model_relearned_64"}
    end = unlearned({head for head, _ in found})
    return found | {("end", group): found[end, group] for group in ("forget", "retain")}


def by_method(reads: Sequence[Read]) -> dict[tuple[str, float], dict[int, Loss]]:
    """Return losses by method and labelled fraction, then by seed."""
    found: dict[tuple[str, float], dict[int, Loss]] = {}
    for read in reads:
        if read.left_out is None:
            key = read.settings["name"].partition("_")[2], float(read.settings[FRACTION])
            found.setdefault(key, {}).setdefault(read.settings["seed"], {}).update(loss_of(read))
    return dict(sorted(found.items(), key=lambda item: (-item[0][1], ORDER.index(item[0][0]))))


def paired(ours: dict[int, Loss], other: dict[int, Loss], of: Callable[[Loss], float]) -> list[float]:
    """Return the differences between two methods, seed by seed."""
    return [of(ours[seed]) - of(other[seed]) for seed in sorted(ours.keys() & other.keys())]


def claims(found: dict[tuple[str, float], dict[int, Loss]]) -> list[tuple[str, str, bool]]:
    """Return each claim, its measured value, and whether it holds by more than the interval."""
    lines = []

    def claim(what: str, values: list[float], least: float = 0.0) -> None:
        half = 0.0 if math.isnan(interval(values)) else interval(values)
        lines.append((what, shown(values), mean(values) - half > least))

    control = found.get(("control", 1.0), {})
    for (method, fraction), ours in found.items():
        if method != "era":
            continue
        for head, when in WHEN.items():
            if not all((head, "forget") in run for run in [*ours.values(), *control.values()]):
                continue
            if control:
                what = f"ERA, {fraction:.0%} labels: forget loss {when}, minus the control's"
                claim(what, paired(ours, control, lambda loss, head=head: loss[head, "forget"]))  # type: ignore[misc]
            before = {"its own before": ours, "the trained control's": control}
            for whose, start in before.items():
                rises = [mean([ours[s][head, g] - start[s]["model", g] for s in ours.keys() & start.keys()])
                         for g in ("forget", "retain") if start]  # fmt: skip
                if rises:
                    ratio = rises[0] / rises[1] if rises[1] > 0 else math.inf
                    what = f"ERA, {fraction:.0%} labels: rise of the forget loss {when} over {whose}, by the retain's"
                    lines.append((what, f"{ratio:.1f}", ratio >= 3))
        if filtering := found.get(("filtering", fraction)):
            for head, when in (("model_relearned_64", "relearning on 64"), ("slow", "slow relearning")):
                if all((head, "forget") in run for run in [*ours.values(), *filtering.values()]):
                    what = f"ERA, {fraction:.0%} labels: forget loss after {when}, minus filtering's"
                    claim(what, paired(ours, filtering, lambda loss, head=head: loss[head, "forget"]))  # type: ignore[misc]
    return lines


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("paths", nargs="+", metavar="PATH", help="runs, folders of them, or globs in quotes")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    a = parser.parse_args()
    reads = [read_run(run) for run in find_runs(a.paths)]
    found = by_method(reads)
    print("| method | labels | seeds | trained: forget | retain | unlearned: forget | retain | relearned: from 4 "
          "| from 16 | from 64 | retain | from 64, slowly | retain |")  # fmt: skip
    print("|---" * 13 + "|")
    for (method, fraction), runs in found.items():
        cells = [[run[cell] for run in runs.values() if cell in run] for cell in CELLS]
        labels = "none" if method in ("base", "control") else f"{fraction:.0%}"
        print(f"| {NAMES[method]} | {labels} | {len(runs)} | {' | '.join(shown(c) if c else '' for c in cells)} |")
    print("\n| claim | measured | holds |\n|---|---|---|")
    for what, value, holds in claims(found):
        print(f"| {what} | {value} | {'yes' if holds else '**no**'} |")
    if a.csv:
        write(a.csv, reads)


def write(path: Path, reads: Sequence[Read]) -> None:
    """Write every final loss of every run as CSV."""
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
    raise SystemExit(guarded(main))
