"""Reading a run folder, which a stranger may have made: manifest, configuration, metrics, ledger."""

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

RUN_CODE = "run_code=true"  # what the user says to run code that a folder names
SIDE = 4096  # largest height and width of an image
CLASSES = 100_000
VOCABULARY = 10_000_000
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


def read_mapping(run: Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The configuration of a run folder as plain data in today's form; `manifest` as in `read_file`.

    Raises: UserError, also for an interpolation: what is resolved has none, and one could read the environment.
    """
    path = run / "config.yaml"
    _require_run(run, path.name)
    mapping = safe_reading.read_yaml(read_file(run, path.name, manifest), path)
    if not isinstance(mapping, dict):
        raise UserError(f"{path}: damaged (not a mapping)")
    if "${" in json.dumps(mapping):
        raise UserError(f"{path}: has an interpolation, ${{…}}, which is not followed in a run folder")
    return migrated(mapping)


def read_config(
    run: Path, manifest: Mapping[str, Any] | None = None, run_code: bool = False, consent: str = RUN_CODE
) -> Config:
    """The configuration of a run folder, checked like any other; `manifest` as in `read_file`.

    What it names is imported only if it is ours, or with `run_code`; `consent` is what the user may say to run it.
    Raises: UserError.
    """
    mapping = read_mapping(run, manifest)
    if not run_code:
        refuse_code(run, foreign(mapping), consent)
    return from_mapping(mapping)


def refuse_code(run: Path, named: Mapping[str, str], consent: str = RUN_CODE) -> None:
    """Raise UserError if a folder names code that is not ours; `consent` is what the user may say to run it."""
    if named:
        names = ", ".join(dict.fromkeys(named.values()))
        raise UserError(f"{run}: is made with code that is not part of gradroute, {names}; {consent} runs it, if you "
                        "trust it")  # fmt: skip


def predicates(config: Config) -> dict[str, str]:
    """The import paths that the groups of a configuration name, by key."""
    rules = config.routing.groups.items()
    return {f"routing.groups.{name}.predicate": rule.predicate for name, rule in rules if rule.predicate}


def read_rerun(run: Path, given: Iterable[str] = (), run_code: bool = False) -> Config:
    """The configuration to repeat a run by.

    Args:
        given: the keys that the user changes, such as `output_dir`: they need no trust in the folder.
        run_code: whether code that the folder names may run.

    Raises: UserError if the folder is no run or is damaged; if it names code; or if it would write outside of the
        current folder, where the user has not said so.
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
    """A run of this version with the same configuration, seed included, in the same output folder; is it finished?

    One that is not finished can be resumed: no process is at work in it, and it has checkpoints.
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
    """How the run stands; `killed` if it says that it is running and no process is at work in it."""
    said = str(manifest["state"])
    if said != "running" or locks.in_use(run):
        return said
    return "killed, or running on another machine"


def read_names(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What `figures.json` says of a run: the kind of its task, groups, regions, and what it found out.

    Of images that is their `shape` and the number of `classes`, of documents the size of the `vocabulary`.
    Raises: UserError.
    """
    path = run / "figures.json"
    names = safe_reading.read_json(read_file(run, path.name, manifest), path)
    found = names if isinstance(names, dict) else {}
    groups, regions, shape = (found.get(key) for key in ("groups", "regions", "shape"))
    if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups) or not isinstance(regions, dict):
        raise UserError(f"{path}: damaged (no names of groups and regions)")
    vocabulary, classes = found.get("vocabulary", 1), found.get("classes", 1)
    if type(vocabulary) is not int or not 1 <= vocabulary <= VOCABULARY:
        raise UserError(f"{path}: damaged (vocabulary={vocabulary}: must be from 1 to {VOCABULARY})")
    if shape is not None or "vocabulary" not in found:
        sides = shape[-2:] if isinstance(shape, list) and (len(shape) == 2 or shape[:-2] == [3]) else []
        if len(sides) != 2 or not all(type(n) is int and 1 <= n <= SIDE for n in sides):
            raise UserError(f"{path}: damaged (shape={shape}: must be two numbers from 1 to {SIDE}, or 3 and these)")
    if type(classes) is not int or not 1 <= classes <= CLASSES:
        raise UserError(f"{path}: damaged (classes={classes}: must be from 1 to {CLASSES})")
    # runs of version 0.1 do not say of which kind they are
    old = "language" if "vocabulary" in found else "classification" if "classes" in found else "reconstruction"
    return {"kind": old, **found}
