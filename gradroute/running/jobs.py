"""The jobs of a sweep, in any process: an index of their states, and tables of it."""

import csv
import io
import json
import os
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, flag_override

from gradroute.comparison.runs import read_run
from gradroute.config.overrides import literal
from gradroute.config.schema import Config
from gradroute.errors import MachineError, UserError, plain_text
from gradroute.records.atomic import write_atomically
from gradroute.records.new_folder import new_folder
from gradroute.records.run_reader import read_manifest
from gradroute.running.exit_status import one_line, unwarned

FOLDER = "jobs"
TABLE = "jobs.csv"
COLUMNS = ("job", "state", "seconds", "headline", "overrides", "error", "host")
_SEEN: dict[tuple[Path, int], dict[str, Any]] = {}
SHOWN = 40  # number of latest jobs shown on the terminal
MAIN = (("decoder", "mse"), ("decoder", "accuracy"), ("model", "cross_entropy"), ("policy", "return"))


@dataclass
class Job:
    """One job of a sweep: its overrides and configurations, and the folder or error of each run."""

    overrides: list[str]
    configs: list[Config] = field(default_factory=list)
    outcomes: list[Path | Exception] = field(default_factory=list)
    number: int = 0

    def failures(self) -> list[Exception]:
        """Return the errors of the job's runs."""
        return [outcome for outcome in self.outcomes if isinstance(outcome, Exception)]


class Noted(Callback):
    """Hydra callback that gives a sweep a folder of its own and notes it, in the process that launches the jobs."""

    folder: Path | None = None
    again: bool = False  # whether lost jobs are being retried, in the same folder

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        """Create the folder, and have all jobs of the sweep see it, in other processes too."""
        if not Noted.again:
            Noted.folder = Path(config.hydra.sweep.dir)
            with suppress(OSError):  # Hydra tries it again, and its error ends the sweep
                Noted.folder = new_folder(Noted.folder)
        with flag_override(config.hydra, ["struct", "readonly"], False):
            config.hydra.sweep.dir = str(Noted.folder)
            config.hydra.overrides.hydra.append(f"hydra.sweep.dir={literal(str(Noted.folder))}")


def headline(run: Path) -> str:
    """Return a finished run's main results: its model's error, mean over groups, and its localization."""
    rows = read_run(run).rows
    words = []
    for head, metric in MAIN:
        values = [r["value"] for r in rows if (r["head"], r["region"], r["metric"]) == (head, "all", metric)]
        words += [f"{metric} {sum(values) / len(values):.4f}"] if values else []
    return ", ".join([*words, *(f"localization {r['value']:.2f}" for r in rows
                                if (r["metric"], r["group"]) == ("localization", "all"))])  # fmt: skip


def _seconds(run: Path) -> float:
    return float(read_manifest(run).get("wall_seconds", 0))


class Index:
    """The index of a sweep: one file per job in its folder, written by the process that makes the job."""

    def __init__(self, sweep: Path) -> None:
        self.sweep, self.folder = sweep, sweep / FOLDER

    def note(self, job: Job, state: str, began: float = 0.0) -> None:
        """Write a job's state and the results of its finished runs; `began` is its start in seconds since the epoch."""
        runs = [outcome for outcome in job.outcomes if isinstance(outcome, Path)]
        errors = [one_line(error) for error in job.failures()]
        entry = {
            "job": job.number, "state": state, "seconds": sum(map(_seconds, runs)), "began": began,
            "headline": "; ".join(filter(None, map(headline, runs))), "overrides": job.overrides,
            "runs": [os.path.relpath(run, self.sweep) for run in runs], "error": "; ".join(errors),
            "machine": any(isinstance(error, MachineError) for error in job.failures()), "host": socket.gethostname(),
        }  # fmt: skip
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomically(self.folder / f"{job.number:06}.json", json.dumps(entry, indent=2) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """Return the entries of all jobs, by number."""
        return [_entry(path) for path in sorted(self.folder.glob("*.json"))]

    def make(self, job: Job) -> None:
        """Make a job's runs in this process, unless it is settled, and note its state."""
        found = self.folder / f"{job.number:06}.json"
        if found.exists() and _settled(json.loads(found.read_text())):
            return
        began = time.time()
        self.note(job, "running", began)
        state = "interrupted"
        try:
            if not job.outcomes:
                from gradroute.running.runner import execute
                from gradroute.training.devices import own_gpu  # imported late: torch takes seconds

                own_gpu(self.folder)
                with unwarned():
                    job.outcomes = execute(job.configs, reuse=True, watch=lambda step, rows: None)
            state = "failed" if job.failures() else "finished"
        finally:
            self.note(job, state, began)

    def lost(self) -> list[dict[str, Any]]:
        """Return the entries of jobs to retry: their process is gone, or the machine made them fail."""
        return [entry for entry in self.read() if not _settled(entry)]

    def jobs(self) -> list[Job]:
        """Return the jobs with their outcomes; a job that did not end has an error as its outcome."""
        found = []
        for entry in self.read():
            job = Job(entry["overrides"], number=entry["job"])
            job.outcomes = [Path(os.path.normpath(self.sweep / run)) for run in entry["runs"]]
            if entry["state"] not in ("finished", "failed"):
                job.outcomes.append(UserError("its process was lost; give the same command again to resume it"))
            elif entry["error"]:
                job.outcomes.append(UserError(entry["error"]))
            found.append(job)
        return found

    def write_table(self) -> None:
        """Write all jobs to one table, `jobs.csv`."""
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({**entry, "overrides": " ".join(entry["overrides"])} for entry in self.read())
        write_atomically(self.sweep / TABLE, buffer.getvalue())


def _entry(path: Path) -> dict[str, Any]:
    """Read a job's entry, a settled one only once: the live table reads all of them every second."""
    key = (path, path.stat().st_mtime_ns)  # another sweep may use the same folder
    if key in _SEEN:
        return _SEEN[key]
    entry: dict[str, Any] = json.loads(path.read_text())
    if _settled(entry):
        _SEEN[key] = entry
    return entry


def _settled(entry: Mapping[str, Any]) -> bool:
    return entry["state"] == "finished" or (entry["state"] == "failed" and not entry["machine"])


def table(folder: Path | None) -> Any:
    """Return the index as a table for the terminal: the number of jobs in each state, and the latest jobs."""
    from rich.markup import escape
    from rich.table import Table

    entries = Index(folder).read() if folder else []
    if not entries:
        return ""
    counts: dict[str, int] = {}
    for entry in entries:
        counts[entry["state"]] = counts.get(entry["state"], 0) + 1
    shown = Table(title=", ".join(f"{count} {state}" for state, count in counts.items()))
    for name in ("job", "state", "seconds", "headline or error", "overrides"):
        shown.add_column(name, overflow="fold", justify="right" if name in ("job", "seconds") else "left")
    common = set.intersection(*(set(entry["overrides"]) for entry in entries)) if len(entries) > 1 else set()
    for entry in entries[-SHOWN:]:
        seconds = time.time() - entry["began"] if entry["state"] == "running" else entry["seconds"]
        said = (entry["error"] or entry["headline"], " ".join(o for o in entry["overrides"] if o not in common))
        cells = (str(entry["job"]), entry["state"], f"{seconds:.0f}", *(escape(plain_text(text)) for text in said))
        shown.add_row(*cells)
    return shown


def say(folder: Path) -> None:
    """Print the index after the last job."""
    from gradroute.reporting.terminal import terminal

    terminal(200).print(table(folder))
