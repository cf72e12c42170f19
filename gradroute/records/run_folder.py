"""Write the folder of a run; `gradroute.records.run_reader` reads it."""

import csv
import hashlib
import io
import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from gradroute.config.identity import config_hash, to_mapping
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import locks
from gradroute.records.atomic import Content, sha256_of, write_atomically
from gradroute.records.metrics import COLUMNS, LEDGER_COLUMNS, UNITS
from gradroute.records.new_folder import new_folder
from gradroute.records.provenance import git_commit, software
from gradroute.records.seal import sealed

CHECKPOINTS = "checkpoints"  # the folder of a run's checkpoints
TIME = "%Y-%m-%dT%H:%M:%S%z"


Listener = Callable[[Mapping[str, Any]], None]  # called with every row of the metrics as it is added


class RunFolder:
    """A run folder that this process writes: configuration, manifest, metrics and the files of the steps.

    The folder is locked until `finish` or `release`.
    """

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        """Lock a folder. Raises: UserError if another process holds it, or if it contains a symbolic link."""
        self.path, self.manifest, self.units = path, dict(manifest), dict(UNITS)
        self.rows: list[dict[str, Any]] = []
        self.listeners: list[Listener] = []
        found = list(path.rglob("*"))
        if links := [file for file in found if file.is_symlink()]:
            raise UserError(f"{links[0]}: is a symbolic link; a run folder with links cannot be resumed")
        self._lock = locks.take(path)
        for file in found:
            if file.name.startswith(".") and file.name != locks.NAME and file.is_file():
                file.unlink()  # left by a process that was killed while writing
        self._started = time.monotonic()

    @classmethod
    def create(cls, config: Config, facts: Mapping[str, Any]) -> "RunFolder":
        """Create a new run's folder; `facts` are added to its manifest. Raises: UserError if it cannot be created."""
        manifest = {
            "state": "running",
            "experiment": config.name,
            "config_hash": config_hash(config),
            "seed": config.seed,
            "started": time.strftime(TIME),
            "command": sys.argv,
            **software(),
            **facts,
        }
        folder = cls(_make_folder(config), manifest)
        text = yaml.safe_dump(to_mapping(config), sort_keys=False)
        write_atomically(folder.path / "config.yaml", text)
        folder.manifest["files"] = {"config.yaml": hashlib.sha256(text.encode()).hexdigest()}
        folder._write_manifest()
        return folder

    def keep(self, files: Mapping[str, str | bytes]) -> None:
        """Write files and record their checksums at once, so that a killed run can be read back."""
        for name, content in files.items():
            (self.path / name).parent.mkdir(exist_ok=True)
            self.write(name, content)
            self.manifest["files"][name] = sha256_of(self.path / name)
        self._write_manifest()

    def resume(self, seconds: float, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """Resume a run after `seconds` and `step` updates, with the metrics so far."""
        self.rows, self._started = [dict(row) for row in rows], time.monotonic() - seconds
        self.manifest["state"] = "running"
        self.manifest.setdefault("resumed", []).append(
            {"at": time.strftime(TIME), "step": step, "command": sys.argv, "git_commit": git_commit()}
        )
        self._write_manifest()

    @property
    def seconds(self) -> float:
        """Wall time of the run so far, in seconds."""
        return time.monotonic() - self._started

    def add(self, step: int, split: str, group: str, head: str, region: str, metric: str, value: float) -> None:
        """Add one row to the metrics; its unit follows from the metric."""
        row = (step, split, group, head, region, metric, self.units[metric], value)
        self.rows.append(dict(zip(COLUMNS, row, strict=True)))
        for listener in self.listeners:
            listener(self.rows[-1])

    def write_metrics(self) -> None:
        """Write all rows so far to `metrics.csv`."""
        lines = [",".join(COLUMNS)]
        for row in self.rows:
            cells = [f'"{row[c]}"' if c == "unit" else str(row[c]) for c in COLUMNS[:-1]]
            lines.append(",".join([*cells, f"{row['value']:.8g}"]))
        self.write("metrics.csv", "\n".join(lines) + "\n")

    def write_ledger(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write the rows of the ledger to `ledger.csv`."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, LEDGER_COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()})
        self.write("ledger.csv", buffer.getvalue())

    def write_json(self, name: str, content: Any) -> None:
        """Write one JSON file of the run."""
        self.write(name, json.dumps(content, indent=2) + "\n")

    def write(self, name: str, content: Content) -> None:
        """Write one file of the run."""
        write_atomically(self.path / name, content)

    def write_folder(self, name: str, make: Callable[[Path], object]) -> None:
        """Have `make` write a folder of the run; it is given the path."""
        make(self.path / name)

    def log(self, line: str) -> None:
        """Append a line to the run's log."""
        with (self.path / "log.txt").open("a") as file:
            file.write(f"{time.strftime('%H:%M:%S')} {line}\n")

    def finish(self, state: str) -> None:
        """Record the end state, the wall time and, if finished, the checksum of every file except checkpoints.

        An unfinished run keeps only the checksums of the files needed to resume it: the others may still change. The
        folder is released.
        """
        self.manifest["state"] = state
        self.manifest["wall_seconds"] = round(self.seconds, 3)
        if state == "finished":
            files = sorted(p for p in self.path.rglob("*") if p.is_file() and p.name != "manifest.json")
            names = {p: p.relative_to(self.path) for p in files}
            self.manifest["files"] = {
                name.as_posix(): sha256_of(p)
                for p, name in names.items()
                if name.parts[0] != CHECKPOINTS and not name.name.startswith(".")
            }
        self._write_manifest()
        self.release()

    def release(self) -> None:
        """Release the folder to other processes."""
        locks.release(self.path, self._lock)

    def _write_manifest(self) -> None:
        self.write_json("manifest.json", sealed(self.manifest))


class Unwritten(RunFolder):
    """The folder of a run that another process leads: this process writes nothing."""

    def __init__(self, path: Path, manifest: Mapping[str, Any]) -> None:
        self.path, self.manifest, self.rows = path, dict(manifest), list[dict[str, Any]]()
        self.units, self.listeners = dict(UNITS), list[Listener]()
        self._started = time.monotonic()

    def write(self, name: str, content: Content) -> None:
        """Do nothing."""

    def write_folder(self, name: str, make: Callable[[Path], object]) -> None:
        """Do nothing."""

    def log(self, line: str) -> None:
        """Do nothing."""

    def finish(self, state: str) -> None:
        """Do nothing."""

    def release(self) -> None:
        """Do nothing."""


def _make_folder(config: Config) -> Path:
    parent = Path(config.output_dir) / config.name
    base = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}_{config_hash(config)}_seed{config.seed}"
    try:
        return new_folder(parent / base)
    except OSError as error:
        raise UserError(
            f"output_dir={config.output_dir}: {parent} cannot be written ({error.strerror}); "
            "set output_dir= to another folder"
        ) from None
