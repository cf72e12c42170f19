"""What a run leaves on disk, written atomically; `gradroute.records.run_reader` reads it."""

import csv
import hashlib
import io
import json
import os
import platform
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradroute.config.schema import Config
from gradroute.config.typed import config_hash, to_mapping
from gradroute.errors import UserError
from gradroute.records import locks
from gradroute.records.provenance import PACKAGES, git_commit, version

COLUMNS = ("step", "split", "group", "head", "region", "metric", "unit", "value")
CHECKPOINTS = "checkpoints"  # the folder of what a run goes on from
TIME = "%Y-%m-%dT%H:%M:%S%z"
SEAL = "manifest_sha256"  # in the manifest, of everything else in it
LEDGER_COLUMNS = (
    "from_step", "to_step", "group", "region", "points", "weight_min", "weight_max", "measured",
    "activation", "routed", "unrouted", "moved", "shifted",
)  # fmt: skip
UNITS = {
    "mse": "squared pixel, pixels in [-1, 1]",
    "mae": "pixel, pixels in [-1, 1]",
    "cross_entropy_unrouted": "nats per token, without the tokens that are mostly a group's (GR App. C)",
    "misdirection": "squared distance to the target, mean over width",
    "drift": "squared distance to what it was, mean over width",
    "related_share": "share of the nearest tokens that are related words, 0 to 1",
    "related_frequency": "share of the tokens of texts that are of related words, 0 to 1",
    "routed_frequency": "share of the tokens of texts that are of routed words, 0 to 1",
    "cross_entropy": "nats per token or image",
    "accuracy": "share of images, 0 to 1",
    "l1": "mean L1 norm of the region's activations",
    "correlation": "mean |correlation|, 0 to 1",
    "localization": "0 to 1",
    "activation_norm": "L2 norm per image, root mean square",
    "gradient_norm": "L2 norm per image of the gradient of its mae or cross_entropy, root mean square",
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
    """A run folder being written: configuration, manifest, metrics and whatever else the steps add.

    It is this process's until `finish`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Take a folder. Raises: UserError if another process has it, or if writing there may lead elsewhere."""
        self.path, self.manifest = path, dict(manifest)
        self.rows: list[dict[str, Any]] = []
        found = list(path.rglob("*"))
        if links := [file for file in found if file.is_symlink()]:
            raise UserError(f"{links[0]}: is a link; a run is not gone on with in a folder that has one")
        self._lock = locks.take(path)
        for file in found:
            if file.name.startswith(".") and file.name != locks.NAME and file.is_file():
                file.unlink()  # of a process that was killed while it wrote
        self._started = time.monotonic()

    @classmethod
    def create(cls, config: Config, facts: Mapping[str, Any]) -> "RunFolder":
        """Make the folder. Raises: UserError if it cannot be made."""
        manifest = {
            "state": "running",
            "experiment": config.name,
            "config_hash": config_hash(config),
            "seed": config.seed,
            "started": time.strftime(TIME),
            "command": sys.argv,
            "packages": {name: version(name) for name in PACKAGES},
            "python": platform.python_version(),
            "git_commit": git_commit(),
            **facts,
        }
        folder = cls(_make_folder(config), manifest)
        text = yaml.safe_dump(to_mapping(config), sort_keys=False)
        write_atomically(folder.path / "config.yaml", text)
        folder.manifest["files"] = {"config.yaml": hashlib.sha256(text.encode()).hexdigest()}
        folder._write_manifest()
        return folder

    def keep(self, texts: Mapping[str, str]) -> None:
        """Write files that a run is read back from, and their checksums at once: one that is killed has them, too."""
        for name, text in texts.items():
            self.write(name, text)
            self.manifest["files"][name] = hashlib.sha256(text.encode()).hexdigest()
        self._write_manifest()

    def resume(self, seconds: float, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Go on after `seconds` with the metrics so far."""
        self.rows, self._started = [dict(row) for row in rows], time.monotonic() - seconds
        self.manifest["state"] = "running"
        self.manifest.setdefault("resumed", []).append(
            {"at": time.strftime(TIME), "step": step, "command": sys.argv, "git_commit": git_commit()}
        )
        self._write_manifest()

    @property
    def seconds(self) -> float:
        """What the run has taken so far."""
        return time.monotonic() - self._started

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
        self.write("metrics.csv", "\n".join(lines) + "\n")

    def write_ledger(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write every row so far to `ledger.csv`."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, LEDGER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self.write("ledger.csv", buffer.getvalue())

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file of the run."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write(self, name: str, content: str | bytes) -> None:
        """Write one file of the run."""
        write_atomically(self.path / name, content)

    def log(self, line: str) -> None:
        """Append a line to the run's log."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def finish(self, state: str) -> None:
        """Record the end state and the wall time, and of a finished run the checksum of every file but checkpoints.

        One that may be gone on with keeps the checksums of what it is read back from: the others will change.
        """
        self.manifest["state"] = state
        self.manifest["wall_seconds"] = round(self.seconds, 3)
        if state == "finished":
            files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "manifest.json")
            names = {p: p.relative_to(self.path) for p in files}
            self.manifest["files"] = {
                name.as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
                for p, name in names.items()
                if name.parts[0] != CHECKPOINTS and not name.name.startswith(".")
            }
        self._write_manifest()
        self.release()

    def release(self) -> None:
        """Let other processes have the folder."""
        locks.release(self.path, self._lock)

    def _write_manifest(self) -> None:
        self.write_json("manifest.json", sealed(self.manifest))


class Unwritten(RunFolder):
    """The folder of a run that another process leads and writes: nothing is written."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest, self.rows = path, dict(manifest), list[dict[str, Any]]()
        self._started = time.monotonic()

    def write(self, name: str, content: str | bytes) -> None:
        """Nothing."""

    def log(self, line: str) -> None:
        """Nothing."""

    def finish(self, state: str) -> None:
        """Nothing."""

    def release(self) -> None:
        """Nothing."""


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


def sealed(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The manifest with the checksum of everything in it, which tells damage; it is no signature."""
    content = {key: value for key, value in manifest.items() if key != SEAL}
    return {SEAL: hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest(), **content}


def final_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The test rows of the last step."""
    last = max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["split"] == "test" and row["step"] == last]
