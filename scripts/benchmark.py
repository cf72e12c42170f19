"""Measure the speed of training, and print each figure that has a target beside it.

Prints a table for every part, and writes all numbers as JSON with `--json`, and the figures with `--out`. Every round
times all variants in turn, so that a busy machine slows them alike; the tables give the median, smallest and largest
over the rounds. `split_speed.py` says what the training of the MNIST split is compared with. The whole takes 18 minutes
on two cores, and needs `pip install -e '.[dev]'` for the tests.

usage: python scripts/benchmark.py [--device cuda] [--rounds 3] [--only epoch,tests] [--json FILE] [--out FILE]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from figures import Figure, write
from growth import growth
from language_throughput import language
from rich.console import Console
from rich.table import Table
from split_speed import ours, read, split
from turns import timed

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.records.provenance import hardware
from gradroute.running.exit_status import guarded
from gradroute.training.memory import keep_freed

IMAGES, ROOT = 60_000, Path(__file__).resolve().parent.parent
Row = dict[str, Any]
Part = tuple[list[Row], list[Figure]]


def configured(*overrides: str) -> Config:
    """Return a checked configuration."""
    return configuration(list(overrides))


def spread(values: list[float], digits: int = 3) -> str:
    """Return the median, the smallest and the largest value as text."""
    low, middle, high = (f"{v:.{digits}g}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def stacks(device: str, rounds: int) -> Part:
    """Measure runs per hour against the number of runs trained together, without evaluation and run folders."""
    rows = []
    sizes = (1, 2, 4) if device == "cpu" else (1, 2, 4, 8, 16, 20, 32)
    for preset in ("paper", "fast"):
        configs = [configured(f"trainer={preset}", f"trainer.device={device}", f"seed={s}") for s in range(max(sizes))]
        data, updates = read(configs[0], device), 4 if preset == "paper" else 12
        trainer = configs[0].trainer
        steps = {str(n): ours(data, configs[:n], updates * trainer.batch_size) for n in sizes}
        needed = trainer.epochs * -(-IMAGES // trainer.batch_size)
        for name, times in timed(steps, rounds, device=device).items():
            rate = [int(name) * 3600 / (t / updates * needed) for t in times]
            rows.append({"what": f"{name} runs together, trainer={preset}", "runs per hour": spread(rate)})
    return rows, []


def _peak_until_end(process: "subprocess.Popen[bytes]") -> float:
    """Return the process's peak memory in GiB, polled while it runs: `ru_maxrss` would include this process's peak."""
    peak = 0
    while process.poll() is None:
        try:
            found = re.search(r"VmHWM:\s*(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
        except OSError:  # it has just ended, or this is not Linux
            found = None
        peak = max(peak, int(found[1])) if found else peak
        time.sleep(0.02)
    return peak / 2**20 if peak else float("nan")


COMMANDS = {
    "start: gradroute-run --help": ["--help"],
    "trainer=smoke without report": ["trainer=smoke", "steps=[train,ablate,evaluate]"],
    "trainer=smoke": ["trainer=smoke"],
    "one epoch of trainer=fast, all steps": ["trainer=fast", "trainer.epochs=1"],
    "one epoch of trainer=paper, all steps": ["trainer=paper", "trainer.epochs=1"],
}
TARGETS = {"trainer=smoke without report": 5.0, "report of trainer=smoke": 3.0}  # seconds, at most


def _command(arguments: list[str]) -> tuple[float, float]:
    """Return the seconds that a command takes in an empty folder, and its peak memory in GiB."""
    script = Path(sys.executable).parent / "gradroute-run"
    with tempfile.TemporaryDirectory() as cwd:
        started = time.perf_counter()
        process = subprocess.Popen([script, *arguments], cwd=cwd, stdout=subprocess.DEVNULL)
        peak = _peak_until_end(process)
        if process.returncode:
            raise SystemExit(f"gradroute-run {' '.join(arguments)}: failed")
        return time.perf_counter() - started, peak


def commands(device: str, rounds: int) -> Part:
    """Measure time and peak memory of commands, from their start to their end; a run's report by the difference."""
    given = {n: a if "--help" in a else [*a, f"trainer.device={device}"] for n, a in COMMANDS.items()}
    _command(given["trainer=smoke"])  # fills the caches of data and fonts
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in given}
    for _ in range(rounds):
        for name, arguments in given.items():
            found[name].append(_command(arguments))
    seconds = {name: [taken for taken, _ in measured] for name, measured in found.items()}
    pairs = zip(seconds["trainer=smoke"], seconds["trainer=smoke without report"], strict=True)
    seconds["report of trainer=smoke"] = [whole - rest for whole, rest in pairs]
    rows: list[Row] = [{"what": n, "seconds": spread(times)} for n, times in seconds.items()]
    for row in rows:
        if row["what"] in found:
            row["peak memory GiB"] = spread([peak for _, peak in found[row["what"]]])
    return rows, [Figure(f"{n}, seconds", seconds[n], most, at_most=True) for n, most in TARGETS.items()]


def tests(device: str, rounds: int) -> Part:
    """Time the tests, once, as the README runs them; they are the same on every device."""
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-m", "pytest", "-q"], cwd=ROOT, stdout=subprocess.DEVNULL)
    if done.returncode:
        raise SystemExit("pytest: failed")
    seconds = time.perf_counter() - started
    return [{"what": "pytest", "seconds": f"{seconds:.0f}"}], [Figure("tests, seconds", [seconds], 240, at_most=True)]


# each returns a table's rows, and figures with their targets
PARTS: dict[str, Callable[[str, int], Part]] = {
    "epoch": split, "stack": stacks, "language": language, "growth": growth, "command": commands, "tests": tests,
}  # fmt: skip


def show(console: Console, title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a table."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(str(row.get(column, "")) for column in columns))
    console.print(table)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="all tables")
    parser.add_argument("--out", type=Path, metavar="FILE", help="the figures: name, value, low, high, target, reached")
    a = parser.parse_args()
    if unknown := set(a.only.split(",")) - set(PARTS):
        parser.error(f"--only: unknown parts: {', '.join(unknown)}; use some of {','.join(PARTS)}")
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; use --device cpu")
    name = torch.cuda.get_device_name() if a.device == "cuda" else hardware()["processor"]
    facts = {"date": time.strftime("%Y-%m-%d"), "device": name, **hardware(), "torch": torch.__version__}
    console, measured, figures = Console(width=160), dict[str, list[Row]](), list[Figure]()
    console.print(facts)
    keep_freed()
    for part in a.only.split(","):
        measured[part], found = PARTS[part](a.device, a.rounds)
        show(console, part, measured[part])
        figures += found
        if a.json:
            a.json.write_text(json.dumps(facts | measured, indent=2) + "\n")
        if a.out:
            write(a.out, figures)
    if figures:
        show(console, "figures", [figure.shown() for figure in figures])


if __name__ == "__main__":
    raise SystemExit(guarded(main))
