"""`gradroute-compare PATH…`: runs side by side, seeds put together, read from disk without torch."""

import argparse
import glob
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.command import guarded
from gradroute.errors import UserError, unknown
from gradroute.published import PUBLISHED, TOLERANCE
from gradroute.reading import read_bytes, read_json, read_yaml
from gradroute.records import read_file, read_manifest
from gradroute.tables import print_table, render, write_comparison

if TYPE_CHECKING:
    import pandas as pd

HIDDEN = ("seed", "output_dir", "dataset.root", "trainer.device", "ledger")  # never why results differ
KEYS = ("head", "region", "group", "metric")  # of a measurement
SWEEP_FILE = "runs.json"  # the runs of a sweep, relative to its folder
FORMATS = ("table", "csv", "markdown", "latex")


@dataclass(frozen=True)
class Read:
    """A run as it is on disk: its flat configuration and its headline measurements, or why it has none."""

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    left_out: str | None = None


def find_runs(paths: Iterable[str]) -> list[Path]:
    """Run folders that paths mean: a run, a glob, or a folder with runs in it. Raises: UserError for one without."""
    found: list[Path] = []
    for path in paths:
        places = [Path(p) for p in sorted(glob.glob(path))] if glob.has_magic(path) else [Path(path)]
        try:
            runs = [run for place in places if place.is_dir() for run in _runs_in(place)]
        except OSError as error:  # such as a name that is too long
            raise UserError(f"{path}: cannot be read ({error.strerror})") from None
        if not runs:
            right = "give run folders, a folder with runs in it, or a glob in quotes"
            raise UserError(f"{path}: not a run folder, and no run is in it; {right}")
        found += runs
    return list(dict.fromkeys(found))


def _runs_in(place: Path) -> list[Path]:
    """The runs below a folder, or those that a sweep's list names, none outside of the output folder it is in."""
    if not (place / SWEEP_FILE).is_file():
        return [path.parent for path in sorted(place.rglob("manifest.json"))]
    where, output_dir = place / SWEEP_FILE, place.resolve().parent.parent
    listed = read_json(read_bytes(place, SWEEP_FILE), where)
    if not isinstance(listed, list) or not all(isinstance(run, str) and run.isprintable() for run in listed):
        raise UserError(f"{where}: damaged (not a list of run folders)")
    for run in listed:
        if Path(run).is_absolute() or not (place / run).resolve().is_relative_to(output_dir):
            raise UserError(f"{where}: {run} is outside of {output_dir}; give the run folders themselves")
    return [Path(os.path.normpath(place / run)) for run in listed]


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return items


def read_run(run: Path) -> Read:
    """A run's settings and headline. Raises: UserError if a file of a finished run is damaged."""
    manifest = read_manifest(run)
    if manifest["state"] != "finished":
        return Read(run, {}, [], f"not finished ({manifest['state']})")
    if "summary.json" not in manifest["files"]:
        return Read(run, {}, [], "not evaluated")
    config = read_yaml(read_file(run, "config.yaml", manifest), run / "config.yaml")
    summary = read_json(read_file(run, "summary.json", manifest), run / "summary.json")
    if not isinstance(config, dict) or not isinstance(config.get("name"), str) or type(config.get("seed")) is not int:
        raise UserError(f"{run}/config.yaml: damaged (no mapping with a name and a seed)")
    settings = flat(config) | {"version": manifest["packages"].get("gradroute")}
    settings["data"] = str(manifest.get("dataset_sha256"))[:12]
    try:
        rows = [{k: row[k] for k in KEYS} | {"value": float(row["value"])} for row in summary["headline"]]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{run}/summary.json: damaged ({error})") from None
    odd = next((row for row in rows if not all(isinstance(row[k], str) and len(row[k]) < 500 for k in KEYS)), None)
    if odd or not rows:
        raise UserError(f"{run}/summary.json: damaged ({odd or 'no rows'})")
    lost = next((row for row in rows if not math.isfinite(row["value"])), None)
    return (
        Read(run, settings, rows)
        if lost is None
        else Read(run, {}, [], f"not finite ({lost['metric']} {lost['value']})")
    )


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
    experiments: dict[str, list[Read]] = {}
    for read in reads:
        experiments.setdefault(read.settings["name"], []).append(read)
    return [
        key
        for key in shown
        if any(len({json.dumps(read.settings.get(key)) for read in runs}) > 1 for runs in experiments.values())
    ]


def independent(reads: list[Read], keys: list[str]) -> dict[str, list[str]]:
    """Of keys that always change together the first, each with the others: a sweep of one knob is one setting."""
    patterns: dict[tuple[int, ...], list[str]] = {}
    for key in keys:
        values = [json.dumps(read.settings.get(key)) for read in reads]
        patterns.setdefault(tuple(values.index(value) for value in values), []).append(key)
    return {first: others for first, *others in patterns.values()}


def interval(values: list[float]) -> float:
    """Half-width of the 95 % t-interval of the mean over independent runs; nan for one run."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return math.nan
    mean = sum(values) / n
    deviation = math.sqrt(sum((v - mean) ** 2 for v in values) / (n - 1))
    return float(stdtrit(n - 1, 0.975)) * deviation / math.sqrt(n)


def aggregate(reads: list[Read], metric: str) -> "pd.DataFrame":
    """One row per setting, head, region and group: mean over seeds, half-width, n, and the published value.

    Raises: UserError for an unknown metric, or runs of different data sets.
    """
    import pandas as pd

    data = {read.settings["data"]: read.path for read in reads}
    if len(data) > 1:
        raise UserError(f"runs of different data sets cannot be compared: {', '.join(map(str, data.values()))}")
    metrics = sorted({row["metric"] for read in reads for row in read.rows})
    if metric not in metrics:
        raise unknown("metric", metric, metrics)
    keys = list(independent(reads, varying(reads)))
    columns = ["experiment", *keys, "head", "region", "group"]
    rows = [
        {"experiment": read.settings["name"], **{k: str(read.settings.get(k)) for k in keys}, **row,
         "seed": read.settings["seed"]}
        for read in reads
        for row in read.rows
        if row["metric"] == metric
    ]  # fmt: skip
    table = pd.DataFrame(rows)
    again = table.duplicated([*columns, "seed"], keep="last")
    grouped = table[~again].groupby(columns, sort=False)["value"]
    result = grouped.agg(mean="mean", half_width=lambda v: interval(list(v)), n="count").reset_index()
    published = [
        PUBLISHED.get(r["experiment"], {}).get((r["head"], r["region"], r["group"], metric), (math.nan, math.nan))
        for r in result.to_dict("records")
    ]
    result["published"] = [value for value, _ in published]
    off = (result["mean"] - result["published"]).abs()
    agrees = off <= TOLERANCE + result["half_width"].fillna(0)
    result["agrees"] = ["" if math.isnan(value) else "yes" if a else "no" for value, a in zip(off, agrees, strict=True)]
    return result


def compare(
    paths: list[str],
    metric: str = "mse",
    where: list[str] | None = None,
    sort: str | None = None,
    form: str = "table",
    out: Path | None = None,
) -> None:
    """Print the comparison, and what was left out and why; with `out`, write it there in every form and as a page."""
    reads = [read_run(path) for path in find_runs(paths)]
    finished = [read for read in reads if read.left_out is None]
    if not finished:
        raise UserError(f"no run to show: {reads[0].path} is {reads[0].left_out}")
    chosen = _where(finished, where or [])
    table = aggregate(chosen, metric)
    if sort is not None:
        if sort not in table.columns:
            raise unknown("column of --sort:", sort, table.columns)
        table = table.sort_values(sort, kind="stable")
    if out is not None:
        write_comparison(out, table, metric, paths)
    if form == "csv":
        print(table.to_csv(index=False, float_format="%.6g"), end="")
    elif form == "table":
        print_table(table, f"{metric} on the test images, pixels in [-1, 1]; mean over seeds, 95 % t-interval")
    else:
        print(render(table, form))
    for key, others in independent(chosen, varying(chosen)).items() if form == "table" else ():
        if others:
            print(f"with {key} also change: {', '.join(others)}")
    for read in reads:
        if read.left_out:
            print(f"not in the table: {read.path} ({read.left_out})", file=sys.stderr)


def main() -> None:
    """Entry point of `gradroute-compare`."""
    parser = argparse.ArgumentParser(prog="gradroute-compare", description=(__doc__ or "").strip())
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, a folder with runs in it, or a glob in quotes")
    parser.add_argument("--metric", default="mse", help="which metric (default: mse)")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting")
    parser.add_argument("--sort", metavar="COLUMN", help="a column of the table")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write CSV, Markdown, LaTeX, plots and a page")
    a = parser.parse_args()
    sys.exit(guarded(lambda: compare(a.paths, a.metric, a.where, a.sort, a.format, a.out)))


if __name__ == "__main__":
    main()
