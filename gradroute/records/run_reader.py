"""Reading a run folder, which a stranger may have made: manifest, configuration, metrics, ledger."""

import csv
import io
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from gradroute.config.schema import Config
from gradroute.config.typed import config_hash, from_mapping, to_mapping
from gradroute.errors import UserError
from gradroute.records import locks, safe_reading
from gradroute.records.provenance import version
from gradroute.records.run_folder import CHECKPOINTS, COLUMNS, LEDGER_COLUMNS, SEAL, sealed

SIDE = 4096  # largest height and width of an image
CLASSES = 100_000
MANIFEST_TYPES: dict[str, tuple[type, ...]] = {  # of what readers use
    "state": (str,), "experiment": (str,), "config_hash": (str,), "seed": (int,), "started": (str,),
    "packages": (dict,), "files": (dict,), "dataset_sha256": (str, type(None)),
}  # fmt: skip


def _require_run(run: Path, name: str) -> None:
    try:
        if not (run / name).exists():
            raise UserError(f"{run}: not a run folder (it has no {name})")
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{run}: not a run folder ({error.strerror})") from None


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run folder; `files` and `packages` are in it.

    Raises: UserError if the folder is no run, or its manifest is damaged or names files outside of the folder.
    """
    path = run / "manifest.json"
    _require_run(run, path.name)
    manifest = safe_reading.read_json(safe_reading.read_bytes(run, path.name), path)
    if not isinstance(manifest, dict) or "state" not in manifest:
        raise UserError(f"{path}: damaged (no state in it)")
    for key, kinds in MANIFEST_TYPES.items():
        if key in manifest and (not isinstance(manifest[key], kinds) or isinstance(manifest[key], bool)):
            raise UserError(f"{path}: damaged ({key} is a {type(manifest[key]).__name__})")
    if sealed(manifest)[SEAL] != manifest.get(SEAL):
        raise UserError(f"{path}: damaged (its SHA-256 is not the one in it)")
    manifest = {"files": {}, "packages": {}, **manifest}
    for name, sha256 in manifest["files"].items():
        if not isinstance(sha256, str):
            raise UserError(f"{path}: damaged (the SHA-256 of {name} is a {type(sha256).__name__})")
        safe_reading.place(run, name)
    return manifest


def check_files(run: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare files of a finished run with the manifest's checksums; raises UserError for one that differs."""
    if manifest["state"] != "finished":
        raise UserError(f"{run}: the run is not finished (state: {state(run, manifest)})")
    for name in names:
        if safe_reading.read_sha256(run, name) != manifest["files"].get(name):
            raise UserError(f"{run}/{name}: damaged (its SHA-256 is not the manifest's)")


def read_file(run: Path, name: str, manifest: Mapping[str, Any] | None = None) -> bytes:
    """A file of a run, compared with the manifest's checksum: of a finished run every file has one. Raises: UserError.

    Without a manifest nothing is compared: for `gradroute-verify`, which says by itself what differs.
    """
    if manifest is None:
        return safe_reading.read_bytes(run, name)
    return safe_reading.read_bytes(
        run, name, manifest["files"].get(name, "none" if manifest["state"] == "finished" else None)
    )


def read_config(run: Path, manifest: Mapping[str, Any] | None = None) -> Config:
    """The resolved configuration of a run folder, type-checked like any other; `manifest` as in `read_file`.

    Raises: UserError, also for an interpolation: what is resolved has none, and one could read the environment.
    """
    path = run / "config.yaml"
    _require_run(run, path.name)
    mapping = safe_reading.read_yaml(read_file(run, path.name, manifest), path)
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: damaged (not a mapping)")
    if "${" in json.dumps(mapping):
        raise UserError(f"{path}: has an interpolation, ${{…}}, which is not followed in a run folder")
    return from_mapping(mapping)


def refuse_code(run: Path, predicates: Mapping[str, str], consent: str) -> None:
    """Raise UserError if groups are made by code, by name; `consent` is what the user may say to run it."""
    if predicates:
        names = ", ".join(predicates.values())
        raise UserError(f"{run}: its groups are made by code, {names}; {consent} runs it, if you trust it")


def predicates(config: Config) -> dict[str, str]:
    """The import paths that the groups of a configuration name, by group."""
    return {name: rule.predicate for name, rule in config.routing.groups.items() if rule.predicate}


def read_rerun(run: Path, given: Iterable[str] = (), run_code: bool = False) -> Config:
    """The configuration to repeat a run by.

    Args:
        given: the keys that the user changes, such as `output_dir`: they need no trust in the folder.
        run_code: whether predicates of the folder may run.

    Raises: UserError if the folder is no run or is damaged; if its groups are made by code; or if it would write
        outside of the current folder, where the user has not said so.
    """
    config, given = read_config(run, read_manifest(run)), set(given)
    if not run_code:
        theirs = {g: p for g, p in predicates(config).items() if f"routing.groups.{g}.predicate" not in given}
        refuse_code(run, theirs, "run_code=true")
    place = Path(config.output_dir)
    if "output_dir" not in given and (place.is_absolute() or ".." in place.parts):
        right = f"give output_dir={config.output_dir} to write there, or another"
        raise UserError(f"{run}: its output_dir={config.output_dir} is outside of the current folder; {right}")
    return config


def _identity(config: Config) -> dict[str, Any]:
    """What two runs must share to be the same run: all but how often it was kept."""
    mapping = to_mapping(config)
    del mapping["checkpoint"]["minutes"]
    return mapping


def twin(config: Config) -> tuple[Path, bool] | None:
    """A run of this version with the same configuration, seed included, in the same output folder; is it finished?

    One that is not finished is meant to be gone on with: no process is at work in it, and it has checkpoints.
    """
    wanted, unfinished = _identity(config), list[Path]()
    pattern = f"*_{config_hash(config)}_seed{config.seed}*"
    for path in sorted((Path(config.output_dir) / config.name).glob(pattern)):
        try:
            manifest = read_manifest(path)
            same = _identity(read_config(path, manifest)) == wanted
        except UserError:
            continue
        if not same or manifest["packages"].get("gradroute") != version("gradroute"):
            continue
        if manifest["state"] == "finished":
            return path, True
        if not locks.in_use(path) and (path / CHECKPOINTS).is_dir():
            unfinished.append(path)
    return (unfinished[-1], False) if unfinished else None


def state(run: Path, manifest: Mapping[str, Any]) -> str:
    """How the run stands; `killed` if it says that it is running and no process is at work in it."""
    said = str(manifest["state"])
    if said != "running" or locks.in_use(run):
        return said
    return "killed, or running on another machine"


def read_ledger(run: Path, manifest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of `ledger.csv`, numbers as numbers and empty cells as None; `manifest` as in `read_file`.

    Raises: UserError if it is damaged.
    """

    def read(column: str, cell: str) -> Any:
        if column in ("group", "region"):
            return cell
        return None if cell == "" else _step(cell) if column in LEDGER_COLUMNS[:2] else float(cell)

    rows = _read_table(run, "ledger.csv", manifest, LEDGER_COLUMNS, read)
    for number, row in enumerate(rows, 2):
        if row["from_step"] is None or row["to_step"] is None or row["from_step"] >= row["to_step"]:
            raise UserError(f"{run}/ledger.csv: damaged (line {number}: its steps are no window)")
    return rows


def read_metrics(run: Path, manifest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """The rows of `metrics.csv` with `step` and `value` as numbers; `manifest` as in `read_file`.

    Raises: UserError if it is damaged.
    """
    kinds: dict[str, Callable[[str], Any]] = {"step": _step, "value": float}
    return _read_table(run, "metrics.csv", manifest, COLUMNS, lambda column, cell: kinds.get(column, str)(cell))


def read_names(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `figures.json` says of a run: groups, regions, and the images' `shape`, how many `classes` a
    classifier tells apart, or the size of the `vocabulary`.

    Raises: UserError.
    """
    path = run / "figures.json"
    names = safe_reading.read_json(read_file(run, path.name, manifest), path)
    found = names if isinstance(names, dict) else {}
    groups, regions, shape = (found.get(key) for key in ("groups", "regions", "shape"))
    if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups) or not isinstance(regions, dict):
        raise UserError(f"{path}: damaged (no names of groups and regions)")
    if type(found.get("vocabulary")) is int and found["vocabulary"] > 0:  # of a language model
        return found
    sides = shape[-2:] if isinstance(shape, list) and (len(shape) == 2 or shape[:-2] == [3]) else []
    if len(sides) != 2 or not all(type(n) is int and 1 <= n <= SIDE for n in sides):
        raise UserError(f"{path}: damaged (shape={shape}: must be two numbers from 1 to {SIDE}, or 3 and these)")
    classes = found.get("classes", 1)  # of a classifier
    if type(classes) is not int or not 1 <= classes <= CLASSES:
        raise UserError(f"{path}: damaged (classes={classes}: must be from 1 to {CLASSES})")
    return found


def _step(cell: str) -> int:
    if not 0 <= int(cell) < 2**53:
        raise ValueError(f"step {cell}")
    return int(cell)


def _read_table(
    run: Path, name: str, manifest: Mapping[str, Any] | None, columns: tuple[str, ...], read: Callable[[str, str], Any]
) -> list[dict[str, Any]]:
    text = safe_reading.read_text(read_file(run, name, manifest), run / name)
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != columns:
            raise ValueError(f"columns are {header}")
        return [{c: read(c, cell) for c, cell in zip(columns, line, strict=True)} for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{run / name}: damaged ({error})") from None
