"""What a run leaves on disk, written atomically; reading it needs neither torch nor trust."""

import csv
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradroute import reading
from gradroute.config import config_hash, from_mapping, to_mapping
from gradroute.errors import UserError
from gradroute.provenance import PACKAGES, git_commit, version
from gradroute.schema import Config

COLUMNS = ("step", "split", "group", "head", "region", "metric", "unit", "value")
SIDE = 4096  # largest height and width of an image
SEAL = "manifest_sha256"  # in the manifest, of everything else in it
MANIFEST_TYPES: dict[str, tuple[type, ...]] = {  # of what readers use
    "state": (str,), "experiment": (str,), "config_hash": (str,), "seed": (int,), "started": (str,),
    "packages": (dict,), "files": (dict,), "dataset_sha256": (str, type(None)),
}  # fmt: skip
LEDGER_COLUMNS = (
    "from_step", "to_step", "group", "region", "points", "weight_min", "weight_max", "measured",
    "activation", "routed", "unrouted", "moved", "shifted",
)  # fmt: skip
UNITS = {
    "mse": "squared pixel, pixels in [-1, 1]",
    "mae": "pixel, pixels in [-1, 1]",
    "l1": "mean L1 norm of the region's activations",
    "correlation": "mean |correlation|, 0 to 1",
    "localization": "0 to 1",
    "activation_norm": "L2 norm per image, root mean square",
    "gradient_norm": "L2 norm per image of the gradient of its mae, root mean square",
}


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write aside, flush to disk, rename: a reader sees the old file or the new one, never half of one."""
    data = content.encode() if isinstance(content, str) else content
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


class RunFolder:
    """A run folder being written: configuration, manifest, metrics and whatever else the steps add."""

    def __init__(self, config: Config, facts: Mapping[str, Any]) -> None:
        """Create the folder. Raises: UserError if it cannot be created."""
        self.path = _make_folder(config)
        self.rows: list[dict[str, Any]] = []
        self._started = time.monotonic()
        self.manifest: dict[str, Any] = {
            "state": "running",
            "experiment": config.name,
            "config_hash": config_hash(config),
            "seed": config.seed,
            "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "command": sys.argv,
            "packages": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git_commit": git_commit(),
            **facts,
        }
        text = yaml.safe_dump(to_mapping(config), sort_keys=False)
        write_atomically(self.path / "config.yaml", text)
        self.manifest["files"] = {"config.yaml": hashlib.sha256(text.encode()).hexdigest()}
        self._write_manifest()

    def add(self, step: int, split: str, group: str, head: str, region: str, metric: str, value: float) -> None:
        """Add one row to the metrics; its unit follows from the metric."""
        row = (step, split, group, head, region, metric, UNITS[metric], value)
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))

    def write_metrics(self) -> None:
        """Write every row so far to `metrics.csv`."""
        lines = [",".join(COLUMNS)]
        for row in self.rows:
            cells = [f'"{row[c]}"' if c == "unit" else str(row[c]) for c in COLUMNS[:-1]]
            lines.append(",".join([*cells, f"{row['value']:.8g}"]))
        write_atomically(self.path / "metrics.csv", "\n".join(lines) + "\n")

    def write_ledger(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write every row so far to `ledger.csv`."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, LEDGER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        write_atomically(self.path / "ledger.csv", buffer.getvalue())

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file of the run."""
        write_atomically(self.path / name, json.dumps(content, indent=2) + "\n")

    def log(self, line: str) -> None:
        """Append a line to the run's log."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def finish(self, state: str) -> None:
        """Record the end state, the wall time and the checksum of every file."""
        self.manifest["state"] = state
        self.manifest["wall_seconds"] = round(time.monotonic() - self._started, 1)
        files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "manifest.json")
        self.manifest["files"] = {
            p.relative_to(self.path).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in files
        }
        self._write_manifest()

    def _write_manifest(self) -> None:
        self.write_json("manifest.json", sealed(self.manifest))


def _make_folder(config: Config) -> Path:
    parent = Path(config.output_dir) / config.name
    base = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{config_hash(config)}_seed{config.seed}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            path = parent / (base if number == 1 else f"{base}-{number}")
            try:
                path.mkdir()
                return path
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(
            f"output_dir={config.output_dir}: {parent} cannot be written ({error.strerror}); "
            "choose another with output_dir="
        ) from None
    raise UserError(f"{parent / base}: the name is taken a thousand times over")


def finished_twin(config: Config) -> Path | None:
    """A finished run of this version with the same configuration, seed included, in the same output folder."""
    wanted = to_mapping(config)
    pattern = f"*_{config_hash(config)}_seed{config.seed}*"
    for path in sorted((Path(config.output_dir) / config.name).glob(pattern)):
        try:
            manifest = read_manifest(path)
            same = to_mapping(read_config(path, manifest)) == wanted
        except UserError:
            continue
        made_by = manifest["packages"].get("gradroute")
        if manifest["state"] == "finished" and same and made_by == version("gradroute"):
            return path
    return None


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum of everything in it, which tells damage; it is no signature."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), **content}


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
    manifest = reading.read_json(reading.read_bytes(run, path.name), path)
    if not isinstance(manifest, dict) or "state" not in manifest:
        raise UserError(f"{path}: damaged (no state in it)")
    for key, kinds in MANIFEST_TYPES.items():
        if key in manifest and (not isinstance(manifest[key], kinds) or isinstance(manifest[key], bool)):
            raise UserError(f"{path}: damaged ({key} is a {type(manifest[key]).__name__})")
    if SEAL in manifest and sealed(manifest)[SEAL] != manifest[SEAL]:
        raise UserError(f"{path}: damaged (its SHA-256 is not the one in it)")
    manifest = {"files": {}, "packages": {}, **manifest}
    for name, sha256 in manifest["files"].items():
        if not isinstance(sha256, str):
            raise UserError(f"{path}: damaged (the SHA-256 of {name} is a {type(sha256).__name__})")
        reading.place(run, name)
    return manifest


def check_files(run: Path, manifest: Mapping[str, Any], names: Iterable[str]) -> None:
    """Compare files of a finished run with the manifest's checksums; raises UserError for one that differs."""
    if manifest["state"] != "finished":
        raise UserError(f"{run}: the run is not finished (state: {manifest['state']})")
    for name in names:
        if reading.read_sha256(run, name) != manifest["files"].get(name):
            raise UserError(f"{run}/{name}: damaged (its SHA-256 is not the manifest's)")


def read_file(run: Path, name: str, manifest: Mapping[str, Any] | None = None) -> bytes:
    """A file of a run, compared with the manifest's checksum: of a finished run every file has one. Raises: UserError.

    Without a manifest nothing is compared: for `gradroute-verify`, which says by itself what differs.
    """
    if manifest is None:
        return reading.read_bytes(run, name)
    return reading.read_bytes(
        run, name, manifest["files"].get(name, "none" if manifest["state"] == "finished" else None)
    )


def read_config(run: Path, manifest: Mapping[str, Any] | None = None) -> Config:
    """The resolved configuration of a run folder, type-checked like any other; `manifest` as in `read_file`.

    Raises: UserError, also for an interpolation: what is resolved has none, and one could read the environment.
    """
    path = run / "config.yaml"
    _require_run(run, path.name)
    mapping = reading.read_yaml(read_file(run, path.name, manifest), path)
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
    """What `figures.json` says of a run: names of groups and regions, and the images' `shape`. Raises: UserError."""
    path = run / "figures.json"
    names = reading.read_json(read_file(run, path.name, manifest), path)
    found = names if isinstance(names, dict) else {}
    groups, regions, shape = (found.get(key) for key in ("groups", "regions", "shape"))
    if not isinstance(groups, list) or not all(isinstance(g, str) for g in groups) or not isinstance(regions, dict):
        raise UserError(f"{path}: damaged (no names of groups and regions)")
    if not isinstance(shape, list) or len(shape) != 2 or not all(type(n) is int and 1 <= n <= SIDE for n in shape):
        raise UserError(f"{path}: damaged (shape={shape}: must be two numbers from 1 to {SIDE})")
    return found


def _step(cell: str) -> int:
    if not 0 <= int(cell) < 2**53:
        raise ValueError(f"step {cell}")
    return int(cell)


def _read_table(
    run: Path, name: str, manifest: Mapping[str, Any] | None, columns: tuple[str, ...], read: Callable[[str, str], Any]
) -> list[dict[str, Any]]:
    text = reading.read_text(read_file(run, name, manifest), run / name)
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != columns:
            raise ValueError(f"columns are {header}")
        return [{c: read(c, cell) for c, cell in zip(columns, line, strict=True)} for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{run / name}: damaged ({error})") from None


def final_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test rows of the last step."""
    last = max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["split"] == "test" and row["step"] == last]
