"""Print what unlearning leaves in a pretrained model, from the runs of `scripts/pretrained_era.sh`, in Markdown.

`RUNS` may also be a file that `--csv` wrote, such as that of another machine. Losses are in nats per token of the test
documents; differences are to the control of the same seed, which is expanded and ablated, but not routed.

usage: python scripts/pretrained_table.py RUNS… [--csv FILE]
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from final_values import Values, collected, last_relearned, unlearned, write

from gradroute.errors import UserError
from gradroute.reporting.intervals import shown
from gradroute.running.exit_status import guarded

METHODS = {  # by the end of the experiment's name, in the order of the table
    "era": "ERA", "control": "control", "filtering": "data filtering", "rmu": "RMU, untuned",
}  # fmt: skip
METRIC = "cross_entropy"
COLUMNS = (
    "forget: trained", "unlearned", "relearned", "retain: trained", "unlearned", "relearned",
)  # fmt: skip


def losses(values: Values) -> list[float]:
    """Return a run's losses in the order of `COLUMNS`; `unlearned` is after the last step before relearning."""
    found = {(head, group): value for (head, _, group, metric), value in values.items() if metric == METRIC}
    heads = {head for head, _ in found}
    end, again = unlearned(heads), last_relearned(heads)
    return [found[head, group] for group in ("forget", "retain") for head in ("model", end, again)]


def by_method(runs: Mapping[tuple[str, int], Values]) -> dict[str, dict[int, list[float]]]:
    """Return losses by experiment, in the order of `METHODS`, then by seed."""
    found: dict[str, dict[int, list[float]]] = {}
    for method in METHODS:
        for (name, seed), values in sorted(runs.items()):
            if name.rpartition("_")[2] == method:
                found.setdefault(name, {})[seed] = losses(values)
    return found


def main() -> None:
    """Print the table; with `--csv`, write what it is made of. Raises: UserError without such a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    runs = collected(given.runs, (METRIC,))
    found = by_method(runs)
    if not found:
        raise UserError(f"{given.runs[0]}: has no run of {', '.join(METHODS)}; give those of scripts/pretrained_era.sh")
    print(
        f"| method | seeds | {' | '.join(COLUMNS)} | minus control: forget, unlearned | relearned | retain, unlearned |"
    )
    print("|---" * (len(COLUMNS) + 5) + "|")
    families = {name.rpartition("_")[0] for name in found}
    for name, own in found.items():
        family, _, method = name.rpartition("_")
        title = METHODS[method] + (f", {family.replace('_', ' ')}" if len(families) > 1 else "")
        control = found.get(f"{family}_control", {})
        both = sorted(own.keys() & control.keys()) if own is not control else []
        cells = [shown(list(column)) for column in zip(*own.values(), strict=True)]
        for place in (1, 2, 4):
            cells.append(shown([own[seed][place] - control[seed][place] for seed in both]) if both else "")
        print(f"| {title} | {len(own)} | {' | '.join(cells)} |")
    if given.csv:
        write(given.csv, runs)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
