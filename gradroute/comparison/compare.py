"""`gradroute-compare PATH…`: runs side by side, seeds put together, read from disk without torch."""

import argparse
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.comparison.intervals import interval
from gradroute.comparison.runs import Read, by_experiment, differ, find_runs, left_out, read_run
from gradroute.comparison.tables import print_table, render, write_comparison
from gradroute.errors import UserError, unknown
from gradroute.records.run_folder import UNITS
from gradroute.reporting.published import PUBLISHED, TOLERANCE
from gradroute.running.exit_status import guarded

if TYPE_CHECKING:
    import pandas as pd

HIDDEN = (
    "seed",
    "output_dir",
    "dataset.root",
    "trainer.device",
    "ledger",
    "checkpoint",
    "completions",
)  # never why results differ
USUAL = ("mse", "accuracy", "cross_entropy")  # what is compared where nothing is said
FORMATS = ("table", "csv", "markdown", "latex")


def _where(reads: list[Read], conditions: list[str]) -> list[Read]:
    for condition in conditions:
        key, equals, value = condition.partition("=")
        valid = {name for read in reads for name in read.settings}
        if not equals:
            raise UserError(f"--where {condition}: give key=value, such as trainer.lr=0.001")
        if valid and key not in valid:
            raise unknown("key of --where:", key, valid)
        reads = [read for read in reads if str(read.settings.get(key)) == value]
    if not reads:
        raise UserError(f"--where {' '.join(conditions)}: no run is left")
    return reads


def varying(reads: list[Read]) -> list[str]:
    """The settings in which runs of one experiment differ, but for seed and paths; what its name says is left out."""
    keys = dict.fromkeys(key for read in reads for key in read.settings)
    shown = [k for k in keys if not any(k == h or k.startswith(f"{h}.") for h in ("name", *HIDDEN))]
    experiments = by_experiment(reads).values()
    return [key for key in shown if any(differ(runs, key) for runs in experiments)]


def independent(reads: list[Read], keys: list[str]) -> dict[str, list[str]]:
    """Of keys that always change together the first, each with the others: a sweep of one knob is one setting."""
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        first: dict[str, int] = {}  # where each value is met first
        pattern = tuple(first.setdefault(repr(read.settings.get(key)), i) for i, read in enumerate(reads))
        patterns.setdefault(pattern, []).append(key)
    return {key: others for key, *others in patterns.values()}


def aggregate(reads: list[Read], metric: str, keys: list[str]) -> "pd.DataFrame":
    """One row per setting, head, region and group: mean over seeds, half-width, n, and the published value.

    `keys`: the settings that have a column.

    Raises: UserError for an unknown metric, or runs of different data sets.
    """
    import pandas as pd

    data = {read.settings["data"]: read.path for read in reads}
    if len(data) > 1:
        raise UserError(f"runs of different data sets cannot be compared: {', '.join(map(str, data.values()))}")
    metrics = sorted({row["metric"] for read in reads for row in read.rows})
    if metric not in metrics:
        raise unknown("metric", metric, metrics)
    columns = ["experiment", *keys, "head", "region", "group"]
    rows = [
        {"experiment": read.settings["name"], **{k: str(read.settings.get(k)) for k in keys}, **row,
         "seed": read.settings["seed"], "setting": read.setting}
        for read in reads
        for row in read.rows
        if row["metric"] == metric
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    again = table.duplicated([*columns, "seed"], keep="last")
    grouped = table[~again].groupby([*columns, "setting"], sort=False)["value"]
    result = grouped.agg(mean="mean", half_width=lambda v: interval(list(v)), n="count").reset_index()
    published = [
        PUBLISHED.get(r["setting"], {}).get((r["head"], r["region"], r["group"], metric), (math.nan, math.nan))
        for r in result.to_dict("records")
    ]
    result = result.drop(columns="setting")
    result["published"] = [value for value, _ in published]
    off = (result["mean"] - result["published"]).abs()
    agrees = off <= TOLERANCE + result["half_width"].fillna(0)
    result["agrees"] = ["" if math.isnan(value) else "yes" if a else "no" for value, a in zip(off, agrees, strict=True)]
    return result


def _usual(reads: list[Read]) -> str:
    """What runs are compared by where nothing is said: the error that their task has."""
    found = {row["metric"] for read in reads for row in read.rows}
    return next((metric for metric in USUAL if metric in found), USUAL[0])


def compare(
    paths: list[str],
    metric: str | None = None,
    where: list[str] | None = None,
    sort: str | None = None,
    form: str = "table",
    out: Path | None = None,
    failed: bool = True,
) -> None:
    """Print the comparison, and what was left out and why; with `out`, write it there in every form and as a page.

    `failed`: also print the jobs of a sweep that failed; `gradroute-run` has its own list of them.
    """
    reads = [read_run(path) for path in find_runs(paths)]
    finished = [read for read in reads if read.left_out is None]
    if not finished:
        raise UserError(f"no run to show: {reads[0].path} is {reads[0].left_out}")
    chosen = _where(finished, where or [])
    metric = metric or _usual(chosen)
    keys = independent(chosen, varying(chosen))
    table = aggregate(chosen, metric, list(keys))
    if sort is not None:
        if sort not in table.columns:
            raise unknown("column of --sort:", sort, table.columns)
        table = table.sort_values(sort, kind="stable")
    out_of_it = left_out(reads, paths)
    notes = [f"with {k} also change: {', '.join(o)}" for k, o in keys.items() if o]
    commits = sorted({read.commit[:12] for read in chosen})
    if len(commits) > 1:
        notes.append(f"made by {len(commits)} commits of gradroute: {', '.join(commits)}")
    if out is not None:
        from gradroute.comparison.language import settings_of

        documents = [read for read in chosen if "dataset.text" not in read.settings]  # it is null of images
        write_comparison(out, table, metric, paths, notes, out_of_it, settings_of(documents, list(keys)))
    if form == "csv":
        print(table.to_csv(index=False, float_format="%.6g"), end="")
    elif form == "table":
        print_table(table, f"{metric} on the test data, in {UNITS.get(metric)}; mean over seeds, 95 % t-interval")
    else:
        print(render(table, form))
    for note in notes:
        print(note, file=sys.stdout if form == "table" else sys.stderr)
    for what, why in out_of_it if failed else ():
        print(f"not in the table: {what} ({why})", file=sys.stderr)


def main() -> None:
    """Entry point of `gradroute-compare`."""
    parser = argparse.ArgumentParser(prog="gradroute-compare", description=(__doc__ or "").strip())
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, a folder with runs in it, or a glob in quotes")
    parser.add_argument("--metric", help=f"which metric (default: {' or '.join(USUAL)}, the first that the runs have)")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting")
    parser.add_argument("--sort", metavar="COLUMN", help="a column of the table")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write CSV, Markdown, LaTeX, plots and a page")
    a = parser.parse_args()
    sys.exit(guarded(lambda: compare(a.paths, a.metric, a.where, a.sort, a.format, a.out)))


if __name__ == "__main__":
    main()
