"""Measure COUNT synthetic runs: disk space per run, and the time to compare them, find one and show a sweep's table.

python scripts/compare_scale.py --count 10000

The folders are made by the code that writes real ones, with the metrics of mnist_split and no weights, plots or page;
settings and seeds differ. Prints one line of JSON. On a file system in memory, reading times are not those of a disk.
"""

import argparse
import json
import os
import random
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from gradroute.config.compose import configuration
from gradroute.records import provenance
from gradroute.records.run_folder import RunFolder
from gradroute.records.run_reader import twin
from gradroute.records.tables import read_metrics
from gradroute.running.exit_status import guarded
from gradroute.running.jobs import Index, Job, table

SEEDS = 10
KEPT: tuple[tuple[str, ...], ...] = ((), ("checkpoint.keep=none",), ("checkpoint.keep=none", "steps=[train,evaluate]"))


def _like(run: Path, count: int, folder: Path) -> None:
    """Make `count` run folders with the numbers of a real one, scaled by up to 1 %."""
    rows, headline = read_metrics(run), json.loads((run / "summary.json").read_text())["headline"]
    generator = random.Random(0)
    facts = {"dataset_sha256": "0" * 64, "hardware": provenance.hardware(), "device": "cpu", "stacked": 1}
    config = configuration(["trainer=smoke", f"output_dir={folder}"])
    config.trainer.precision = "float32"
    for number in range(count):
        config.seed, config.losses.correlation = number % SEEDS, 0.001 * (number // SEEDS)
        moved = generator.uniform(0.99, 1.01)
        made = RunFolder.create(config, facts)
        made.rows = [{**row, "value": row["value"] * moved} for row in rows]
        made.write_metrics()
        made.write_json("summary.json", {"headline": [{**row, "value": row["value"] * moved} for row in headline]})
        made.finish("finished")


def _seconds(what: Callable[[], object]) -> list[float]:
    """Return the seconds of three calls, in order."""
    found = []
    for _ in range(3):
        began = time.perf_counter()
        what()
        found.append(round(time.perf_counter() - began, 3))
    return found


def _index(sweep: Path, count: int) -> Path:
    """Write the index of a sweep of `count` finished jobs; return its folder."""
    index = Index(sweep)
    for number in range(count):
        index.note(Job([f"seed={number}", "trainer=smoke"], number=number), "finished")
    return sweep


def _made(place: Path, overrides: Iterable[str]) -> Path:
    """Make a run in a folder of its own; return the run's folder."""
    place.mkdir()
    subprocess.run(["gradroute-run", "trainer=smoke", *overrides], cwd=place, check=True, capture_output=True)
    (run,) = (place / "outputs" / "mnist_split").iterdir()
    return run


def _size(run: Path) -> tuple[int, int]:
    files = [path for path in run.rglob("*") if path.is_file()]
    return sum(path.stat().st_size for path in files), len(files)


def _measured(command: list[str], output: Path) -> tuple[float, float]:
    """Run a command with its output in `output`; return its seconds and its peak memory in MiB."""
    began = time.perf_counter()
    with output.open("w") as file, subprocess.Popen(command, stdout=file) as process:
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: exit status {process.returncode}")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def main() -> None:
    """Make the folders, compare them, and print the measurements."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    count = parser.parse_args().count
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        runs = {" ".join(kept): _made(place / str(number), kept) for number, kept in enumerate(KEPT)}
        began = time.perf_counter()
        _like(runs[""], count, place / "many")
        made = time.perf_counter() - began
        command = ["gradroute-compare", str(place / "many"), "--format", "csv"]
        compared = [_measured(command, place / "csv") for _ in range(3)]
        sweep = _index(place / "sweep", count)
        config = configuration(["trainer=smoke", f"output_dir={place / 'many'}", "losses.correlation=0.5"])
        lines = len((place / "csv").read_text().splitlines())
        print(json.dumps({
            "runs": count, "rows": lines - 1, "compare_seconds": sorted(round(seconds, 1) for seconds, _ in compared),
            "compare_mib": round(max(mib for _, mib in compared)), "making_seconds": round(made, 1),
            "finding_a_run_seconds": _seconds(lambda: twin(config)),
            "live_table_seconds": _seconds(lambda: table(sweep)),
            "bytes_and_files_of_a_run": {how: _size(run) for how, run in runs.items()}, **provenance.hardware(),
        }))  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(guarded(main))
