"""Compare runs from disk, averaged over seeds, without torch."""

import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.comparison.runs import Read, by_experiment, differ, distinct, find_runs, left_out, read_run
from gradroute.comparison.tables import print_table, render, write_comparison
from gradroute.errors import UserError, unknown
from gradroute.records.metrics import UNITS
from gradroute.reporting.intervals import interval
from gradroute.reporting.published import PUBLISHED, TOLERANCE

if TYPE_CHECKING:
    import pandas as pd

HIDDEN = (
    "seed",
    "output_dir",
    "dataset.root",
    "trainer.device",
    "tracker",
    "plots",
    "ledger",
    "checkpoint",
    "completions",
)  # these never explain a difference in results
USUAL = ("mse", "accuracy", "cross_entropy", "return")  # the default metric is the first that the runs have


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
    """Return the settings in which runs of one experiment differ, without those in `HIDDEN`.

    What differs only between experiments is left out: their names stand for it.
    """
    keys = dict.fromkeys(key for read in reads for key in read.settings)
    shown = [k for k in keys if not any(k == h or k.startswith(f"{h}.") for h in ("name", *HIDDEN))]
    experiments = by_experiment(reads).values()
    return [key for key in shown if any(differ(runs, key) for runs in experiments)]


def independent(reads: list[Read], keys: list[str]) -> dict[str, list[str]]:
    """Return the first of keys that always change together, with the others: a sweep of one knob is one setting."""
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        first: dict[str, int] = {}  # the first run that has each value
        pattern = tuple(first.setdefault(repr(read.settings.get(key)), i) for i, read in enumerate(reads))
        patterns.setdefault(pattern, []).append(key)
    return {key: others for key, *others in patterns.values()}


def aggregate(reads: list[Read], metric: str, keys: list[str]) -> "pd.DataFrame":
    """Return one row per setting, head, region and group: mean over seeds, half-width, n, and the published value.

    `keys`: the settings that get a column.

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
    """Return the default metric: the error of the runs' task."""
    found = {row["metric"] for read in reads for row in read.rows}
    return next((metric for metric in USUAL if metric in found), USUAL[0])


def _notes(chosen: list[Read], again: list[Read], keys: Mapping[str, list[str]]) -> list[str]:
    """Return what a reader should know: settings that change together, runs not counted, and commits."""
    notes = [f"these always change together with {k}: {', '.join(o)}" for k, o in keys.items() if o]
    if again:
        names = ", ".join(str(read.path) for read in again)
        notes.append(f"not counted, since their numbers are those of another seed to the bit: {names}")
    commits = sorted({read.commit[:12] for read in chosen})
    if len(commits) > 1:
        notes.append(f"made by {len(commits)} commits of gradroute: {', '.join(commits)}")
    return notes


def compare(
    paths: list[str], metric: str | None = None, where: list[str] | None = None, sort: str | None = None,
    form: str = "table", out: Path | None = None, failed: bool = True,
) -> None:  # fmt: skip
    """Print the comparison, and what was left out and why; with `out`, also write it there in every form and as a page.

    `failed`: also print the failed jobs of a sweep; `gradroute-run` lists them itself.

    Raises: UserError for paths without finished runs, and for an unknown metric, key or column.
    """
    reads = [read_run(path) for path in find_runs(paths)]
    finished = [read for read in reads if read.left_out is None]
    if not finished:
        raise UserError(f"no run to show: {reads[0].path} is {reads[0].left_out}")
    chosen, again = distinct(_where(finished, where or []))
    metric = metric or _usual(chosen)
    unit = next((read.units[metric] for read in chosen if read.units.get(metric)), UNITS.get(metric, ""))
    keys = independent(chosen, varying(chosen))
    table = aggregate(chosen, metric, list(keys))
    if sort is not None:
        if sort not in table.columns:
            raise unknown("column of --sort:", sort, table.columns)
        table = table.sort_values(sort, kind="stable")
    out_of_it, notes = left_out(reads, paths), _notes(chosen, again, keys)
    if out is not None:
        from gradroute.comparison.language import settings_of

        documents = [read for read in chosen if any(row["head"] == "model" for row in read.rows)]
        write_comparison(out, table, metric, unit, paths, notes, out_of_it, settings_of(documents, list(keys)))
    if form == "csv":
        print(table.to_csv(index=False, float_format="%.6g"), end="")
    elif form == "table":
        print_table(table, f"{metric} on the test data, in {unit}; mean over seeds, 95 % t-interval")
    else:
        print(render(table, form))
    for note in notes:
        print(note, file=sys.stdout if form == "table" else sys.stderr)
    for what, why in out_of_it if failed else ():
        print(f"not in the table: {what} ({why})", file=sys.stderr)
