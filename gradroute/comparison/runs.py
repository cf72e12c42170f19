"""Find, read and check the runs to compare, without torch."""

import glob
import math
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradroute.config.identity import flat
from gradroute.config.legacy import migrated
from gradroute.errors import UserError
from gradroute.records.run_reader import check_files, read_file, read_manifest, state
from gradroute.records.safe_reading import read_bytes, read_json, read_yaml
from gradroute.records.tables import read_summary
from gradroute.reporting.published import setting

KEYS = ("head", "region", "group", "metric")  # these identify a measurement
SWEEP_FILE = "runs.json"  # a sweep's runs, relative to its folder, and its failed jobs


@dataclass(frozen=True)
class Read:
    """A run on disk: its flat configuration and headline measurements, or the reason why it is left out."""

    path: Path
    settings: dict[str, Any]
    rows: list[dict[str, Any]]
    left_out: str | None = None
    commit: str = ""
    setting: str = ""  # see `gradroute.reporting.published`
    units: Mapping[str, str] = field(default_factory=dict)  # by metric

    @property
    def numbers(self) -> tuple[Any, ...]:
        """Every number that the run measured. Runs whose numbers are equal to the bit are one sample."""
        return tuple(sorted((*(row[key] for key in KEYS), row["value"]) for row in self.rows))


def natural(text: str) -> tuple[Any, ...]:
    """Return a sort key that orders numbers by value, also inside names, so that `row10` comes after `row9`."""
    try:
        return 0, float(text)
    except ValueError:
        return 1, [(not part.isdigit(), int(part) if part.isdigit() else part) for part in re.split(r"(\d+)", text)]


def find_runs(paths: Iterable[str]) -> list[Path]:
    """Return the run folders of paths: runs, globs, or folders of runs. Raises: UserError for a path without a run."""
    found: list[Path] = []
    for path in paths:
        places = [Path(p) for p in sorted(glob.glob(path), key=natural)] if glob.has_magic(path) else [Path(path)]
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
    """Return the runs below a folder; for a sweep's folder, those on its list.

    Raises: UserError if the list names a run outside the output folder.
    """
    if not (place / SWEEP_FILE).is_file():
        return [path.parent for path in sorted(place.rglob("manifest.json"))]
    listed, output_dir = _read_sweep(place)["runs"], place.resolve().parent.parent
    for run in listed:
        if Path(run).is_absolute() or not (place / run).resolve().is_relative_to(output_dir):
            raise UserError(f"{place / SWEEP_FILE}: {run} is outside {output_dir}; give the run folders themselves")
    return [Path(os.path.normpath(place / run)) for run in listed]


def _read_sweep(place: Path) -> dict[str, list[Any]]:
    """Return a sweep's runs and failed jobs. Raises: UserError if they cannot be read."""
    where = place / SWEEP_FILE
    found = read_json(read_bytes(place, SWEEP_FILE), where)
    try:
        runs, failed = found["runs"], [(str(entry["job"]), str(entry["error"])) for entry in found["failed"]]
        if not isinstance(runs, list) or not all(isinstance(run, str) and run.isprintable() for run in runs):
            raise TypeError
    except (TypeError, KeyError):
        raise UserError(f"{where}: damaged (no lists of runs and failed jobs)") from None
    return {"runs": runs, "failed": failed}


def distinct(reads: Iterable[Read]) -> tuple[list[Read], list[Read]]:
    """Return the distinct runs, and those that repeat another seed's settings and numbers: they are no new samples."""
    seen: dict[tuple[Any, ...], Read] = {}
    again: list[Read] = []
    for read in reads:
        settings = {key: value for key, value in read.settings.items() if key not in ("seed", "output_dir")}
        key = (repr(sorted(settings.items())), read.numbers)
        if key in seen and seen[key].settings["seed"] != read.settings["seed"]:
            again.append(read)
        else:
            seen[key] = read
    return list(seen.values()), again


def by_experiment(reads: Iterable[Read]) -> dict[str, list[Read]]:
    """Return the runs of each experiment, by its name."""
    found: dict[str, list[Read]] = {}
    for read in reads:
        found.setdefault(read.settings["name"], []).append(read)
    return found


def differ(reads: Iterable[Read], key: str) -> bool:
    """Return whether runs differ in a setting."""
    return len({repr(read.settings.get(key)) for read in reads}) > 1


def left_out(reads: list[Read], paths: list[str]) -> list[tuple[str, str]]:
    """Return what is not in the table, and why: unfinished runs, and failed jobs of a sweep."""
    places = [Path(path) for path in paths if (Path(path) / SWEEP_FILE).is_file()]
    failed = [entry for place in places for entry in _read_sweep(place)["failed"]]
    return [(str(read.path), read.left_out) for read in reads if read.left_out] + failed


def read_run(run: Path) -> Read:
    """Return a run's settings and headline measurements. Raises: UserError if a file of a finished run is damaged."""
    manifest = read_manifest(run)
    if manifest["state"] != "finished":
        return Read(run, {}, [], f"not finished ({state(run, manifest)})")
    if "summary.json" not in manifest["files"]:
        return Read(run, {}, [], "not evaluated")
    config = read_yaml(read_file(run, "config.yaml", manifest), run / "config.yaml")
    summary = read_summary(run, manifest)
    check_files(run, manifest, ["metrics.csv"])
    if not isinstance(config, dict) or not isinstance(config.get("name"), str) or type(config.get("seed")) is not int:
        raise UserError(f"{run}/config.yaml: damaged (no mapping with a name and a seed)")
    config = migrated(config)
    settings = flat(config) | {"version": manifest["packages"].get("gradroute")}
    settings["data"] = str(manifest.get("dataset_sha256"))[:12]
    commit = str(manifest.get("git_commit"))
    rows = [{key: row[key] for key in (*KEYS, "value")} for row in summary]
    lost = next((row for row in rows if not math.isfinite(row["value"])), None)
    if lost is not None:
        return Read(run, {}, [], f"not finite ({lost['metric']} {lost['value']})")
    units = {str(row["metric"]): str(row.get("unit", "")) for row in summary}
    return Read(run, settings, rows, None, commit, setting(config), units)
