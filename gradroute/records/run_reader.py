"""Read the folder of a run that may come from a stranger: manifest, configuration, checksums, names."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gradroute.config.build import from_mapping
from gradroute.config.doors import foreign
from gradroute.config.identity import config_hash, run_identity, to_mapping
from gradroute.config.legacy import migrated
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import locks, safe_reading
from gradroute.records.provenance import version
from gradroute.records.run_folder import CHECKPOINTS
from gradroute.records.seal import SEAL, sealed

RUN_CODE = "run_code=true"  # how the user allows code that a folder names
SIDE = 4096  # largest height or width of an image, in pixels
CLASSES = 100_000
VOCABULARY = 10_000_000
MANIFEST_TYPES: dict[str, tuple[type, ...]] = {  # of the entries that readers use
    "state": (str,), "experiment": (str,), "config_hash": (str,), "seed": (int,), "started": (str,),
    "packages": (dict,), "files": (dict,), "dataset_sha256": (str, type(None)),
    "weights": (list,), "hardware": (dict,), "device": (str,), "stacked": (int,),
}  # fmt: skip


def _require_run(run: Path, name: str) -> None:
    try:
        if not (run / name).exists():
            raise UserError(f"{run}: not a run folder (it has no {name})")
    except OSError as error:  # such as a name that is too long
        raise UserError(f"{run}: not a run folder ({error.strerror})") from None


def read_manifest(run: Path) -> dict[str, Any]:
    """Return the manifest of a run folder; it always has `files` and `packages`.

    Raises: UserError if the folder is not a run, or its manifest is damaged or names files outside of the folder.
    """
    path = run / "manifest.json"
    _require_run(run, path.name)
    manifest = safe_reading.read_json(safe_reading.read_bytes(run, path.name), path)
    if not isinstance(manifest, dict) or "state" not in manifest:
        raise UserError(f"{path}: damaged (it has no state)")
    for key, kinds in MANIFEST_TYPES.items():
        if key in manifest and (not isinstance(manifest[key], kinds) or isinstance(manifest[key], bool)):
            raise UserError(f"{path}: damaged ({key} is a {type(manifest[key]).__name__})")
    if sealed(manifest)[SEAL] != manifest.get(SEAL):
        raise UserError(f"{path}: damaged (its SHA-256 differs from the one in it)")
    manifest = {"files": {}, "packages": {}, **manifest}
    for name, sha256 in manifest["files"].items():
        if not isinstance(sha256, str):
            raise UserError(f"{path}: damaged (the SHA-256 of {name} is a {type(sha256).__name__})")
        safe_reading.place(run, name)
    return manifest


def check_files(run: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare files of a finished run with the manifest's checksums. Raises: UserError if one differs."""
    if manifest["state"] != "finished":
        raise UserError(f"{run}: the run is not finished (state: {state(run, manifest)})")
    for name in names:
        if safe_reading.read_sha256(run, name) != manifest["files"].get(name):
            raise UserError(f"{run}/{name}: damaged (its SHA-256 differs from the manifest's)")


def read_file(run: Path, name: str, manifest: Mapping[str, Any] | None = None) -> bytes:
    """Return the content of a run's file, compared with the manifest's checksum. Raises: UserError.

    A file of a finished run must have a checksum. Without a manifest nothing is compared: `gradroute-verify` reports
    differences itself.
    """
    if manifest is None:
        return safe_reading.read_bytes(run, name)
    return safe_reading.read_bytes(
        run, name, manifest["files"].get(name, "none" if manifest["state"] == "finished" else None)
    )


def read_mapping(run: Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the configuration of a run as plain data in the current format; `manifest` as in `read_file`.

    Raises: UserError, also for an interpolation: gradroute writes none, and one could read the environment.
    """
    path = run / "config.yaml"
    _require_run(run, path.name)
    mapping = safe_reading.read_yaml(read_file(run, path.name, manifest), path)
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: damaged (not a mapping)")
    if "${" in json.dumps(mapping):
        raise UserError(f"{path}: has an interpolation, ${{…}}, which is not allowed in a run folder")
    return migrated(mapping)


def read_config(
    run: Path, manifest: Mapping[str, Any] | None = None, run_code: bool = False, consent: str = RUN_CODE
) -> Config:
    """Return the configuration of a run, checked like any other; `manifest` as in `read_file`.

    Code that is not part of gradroute is imported only with `run_code`; `consent` is the option that allows it.
    Raises: UserError.
    """
    mapping = read_mapping(run, manifest)
    if not run_code:
        refuse_code(run, foreign(mapping), consent)
    return from_mapping(mapping)


def refuse_code(run: Path, named: Mapping[str, str], consent: str = RUN_CODE) -> None:
    """Raise UserError if a folder names code that is not part of gradroute; `consent` is the option that allows it."""
    if named:
        names = ", ".join(dict.fromkeys(named.values()))
        raise UserError(f"{run}: names code that is not part of gradroute, {names}; give {consent} to run it, if you "
                        "trust it")  # fmt: skip


def predicates(config: Config) -> dict[str, str]:
    """Return the import paths of the predicates of a configuration's groups, by key."""
    rules = config.routing.groups.items()
    return {f"routing.groups.{name}.predicate": rule.predicate for name, rule in rules if rule.predicate}


def read_rerun(run: Path, given: Iterable[str] = (), run_code: bool = False) -> Config:
    """Return the configuration for repeating a run.

    Args:
        given: the keys that the user changes, such as `output_dir`: the folder's values do not count there.
        run_code: whether code that the folder names may run.

    Raises: UserError if the folder is not a run or is damaged; if it names code and `run_code` is false; or if it
        would write outside of the current folder and the user has not given `output_dir`.
    """
    config, given = read_config(run, read_manifest(run), run_code), set(given)
    if not run_code:
        refuse_code(run, {key: path for key, path in predicates(config).items() if key not in given})
    place = Path(config.output_dir)
    if "output_dir" not in given and (place.is_absolute() or ".." in place.parts):
        right = f"give output_dir={config.output_dir} to write there, or another"
        raise UserError(f"{run}: its output_dir={config.output_dir} is outside of the current folder; {right}")
    return config


def twin(config: Config) -> tuple[Path, bool] | None:
    """Find a run of this version with the same configuration and seed in the same output folder.

    Returns: its folder, and whether it is finished; or None. An unfinished run is returned only if it can be resumed:
        it has checkpoints, and no process is using it.
    """
    wanted, unfinished = run_identity(to_mapping(config)), list[Path]()
    pattern = f"*_{config_hash(config)}_seed{config.seed}*"
    for path in sorted((Path(config.output_dir) / config.name).glob(pattern)):
        try:
            manifest = read_manifest(path)
            same = run_identity(read_mapping(path, manifest)) == wanted
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
    """Return the state of a run: `killed, …` if its manifest says `running` and no process holds its folder."""
    said = str(manifest["state"])
    if said != "running" or locks.in_use(run):
        return said
    return "killed, or running on another machine"


def _check_policy(path: Path, shape: Any, actions: Any) -> None:
    """Raise UserError unless these are the shape of an observation and a number of actions."""
    sides = shape if isinstance(shape, list) and 1 <= len(shape) <= 4 else []
    if not sides or not all(type(n) is int and 1 <= n <= SIDE for n in sides):
        raise UserError(f"{path}: damaged (shape={shape}: must be 1 to 4 numbers from 1 to {SIDE})")
    if type(actions) is not int or not 1 <= actions <= CLASSES:
        raise UserError(f"{path}: damaged (actions={actions}: must be from 1 to {CLASSES})")


def read_names(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of `figures.json`: the kind of task, groups, regions, and sizes of the data.

    The sizes are the `shape` of images and the number of `classes`, or the size of the `vocabulary` of documents.
    Raises: UserError.
    """
    path = run / "figures.json"
    names = safe_reading.read_json(read_file(run, path.name, manifest), path)
    found = names if isinstance(names, dict) else {}
    groups, regions, shape = (found.get(key) for key in ("groups", "regions", "shape"))
    if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups) or not isinstance(regions, dict):
        raise UserError(f"{path}: damaged (it has no names of groups and regions)")
    vocabulary, classes = found.get("vocabulary", 1), found.get("classes", 1)
    if type(vocabulary) is not int or not 1 <= vocabulary <= VOCABULARY:
        raise UserError(f"{path}: damaged (vocabulary={vocabulary}: must be from 1 to {VOCABULARY})")
    if "actions" in found:
        _check_policy(path, shape, found["actions"])
    elif shape is not None or "vocabulary" not in found:
        sides = shape[-2:] if isinstance(shape, list) and (len(shape) == 2 or shape[:-2] == [3]) else []
        if len(sides) != 2 or not all(type(n) is int and 1 <= n <= SIDE for n in sides):
            right = f"[height, width] or [3, height, width], from 1 to {SIDE}"
            raise UserError(f"{path}: damaged (shape={shape}: must be {right})")
    if type(classes) is not int or not 1 <= classes <= CLASSES:
        raise UserError(f"{path}: damaged (classes={classes}: must be from 1 to {CLASSES})")
    # runs of version 0.1 do not state their kind
    old = "language" if "vocabulary" in found else "classification" if "classes" in found else "reconstruction"
    return {"kind": old, **found}
