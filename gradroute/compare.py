"""`gradroute-compare RUN…`: the headline metrics of runs side by side, read from disk without torch."""

import argparse
import json
import sys
from pathlib import Path

from gradroute.command import guarded
from gradroute.errors import UserError
from gradroute.records import check_files, read_manifest


def headline(run: Path, metric: str) -> dict[tuple[str, str, str], float]:
    """A finished run's `(head, region, group)` to value for one metric. Raises: UserError."""
    check_files(run, read_manifest(run), ["summary.json"])
    try:
        rows = json.loads((run / "summary.json").read_text())["headline"]
        return {(r["head"], r["region"], r["group"]): float(r["value"]) for r in rows if r["metric"] == metric}
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}/summary.json: damaged ({error})") from None


def compare(runs: list[Path], metric: str) -> None:
    """Print one table: a row for each head, region and group, a column for each run."""
    from rich.console import Console
    from rich.table import Table

    manifests = {run: read_manifest(run) for run in runs}
    columns = {run: headline(run, metric) for run in runs if manifests[run]["state"] == "finished"}
    table = Table(title=f"{metric} on the test images, pixels in [-1, 1]")
    for title in ("head", "region", "group"):
        table.add_column(title)
    for number, run in enumerate(columns, 1):
        table.add_column(f"[{number}] seed {manifests[run]['seed']}", justify="right")
    for key in dict.fromkeys(key for values in columns.values() for key in values):
        table.add_row(*key, *(f"{v[key]:.4f}" if key in v else "" for v in columns.values()))
    console = Console() if sys.stdout.isatty() else Console(width=max(80, 60 + 16 * len(columns)))
    console.print(table)
    for number, run in enumerate(columns, 1):
        console.print(f"[{number}] {run}", highlight=False, markup=False, soft_wrap=True)
    for run in runs:
        if run not in columns:
            state = f"not in the table: {run} ({manifests[run]['state']})"
            console.print(state, highlight=False, markup=False, soft_wrap=True)


def main() -> None:
    """Entry point of `gradroute-compare`."""
    parser = argparse.ArgumentParser(prog="gradroute-compare", description=(__doc__ or "").strip())
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a run folder, outputs/<experiment>/<run>")
    parser.add_argument("--metric", choices=("mse", "mae"), default="mse", help="which error (default: mse)")
    arguments = parser.parse_args()
    sys.exit(guarded(lambda: compare(arguments.runs, arguments.metric)))


if __name__ == "__main__":
    main()
