"""Measure the speed of training, compared with the textbook form and with the machine's peak matrix-product rate.

Prints a table for every part, and writes all numbers as JSON with `--json`. Every round times all variants in turn, so
that a busy machine slows them alike; the tables give the median, smallest and largest over the rounds. The textbook
form is written here from the published description (GR App. B): float32, one decoder pass per group, `detach` for the
mask, unfused Adam, every loss read with `.item()`.

usage: python scripts/benchmark.py [--device cuda] [--rounds 3] [--only epoch,stack] [--json FILE]
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.images.dataset import Images
from gradroute.models.autoencoder import Autoencoder
from gradroute.records.provenance import hardware
from gradroute.tasks.base import Task, create
from gradroute.training.devices import computing
from gradroute.training.fit import Fit, Training

FLOP_PER_IMAGE = 60.8e6  # matrix products of one update of setting 1 at paper sizes, one decoder pass
IMAGES = 60_000
Row = dict[str, Any]
Step = Callable[[], None]


def configured(*overrides: str) -> Config:
    """Return a checked configuration."""
    return configuration(list(overrides))


def waited(device: str) -> None:
    """Wait until the device has finished its work."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(what: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    """Return the seconds of every step in every round, the steps in turn, after one round of warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in what}
    for number in range(rounds + 1):
        for name, step in what.items():
            started = time.perf_counter()
            step()
            waited(device)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def spread(values: list[float], digits: int = 3) -> str:
    """Return the median, the smallest and the largest value as text."""
    low, middle, high = (f"{v:.{digits}g}" for v in (min(values), statistics.median(values), max(values)))
    return f"{middle} ({low} to {high})"


def read(config: Config, device: str) -> Images:
    """Load all data of a configuration onto the device."""
    images: Images = build(config.dataset, "dataset").tensors()
    return images.to(torch.device(device))


def textbook(data: Images, config: Config, device: str) -> Step:
    """Return a function that trains one epoch as published: two decoder passes with `detach`."""
    parts = create(config, data).parts
    model, certificates = parts.model, parts.certificates
    assert isinstance(model, Autoencoder)
    optimizer = torch.optim.Adam([*model.parameters(), *certificates.parameters()], lr=1e-3, weight_decay=5e-5)

    def epoch() -> None:
        for chosen in torch.randperm(len(data.train_images)).split(2048):
            rows = chosen.to(device)
            images, low = data.train_images[rows], data.train_labels[rows] < 5
            z = model.encoder(images)
            top, bottom = z[:, :16], z[:, 16:]
            losses = [
                (model.decoder(torch.cat([top, bottom.detach()], 1)[low]) - images[low]).abs().mean(),
                (model.decoder(torch.cat([top.detach(), bottom], 1)[~low]) - images[~low]).abs().mean(),
                (certificates["top"](top.detach()) - images).abs().mean(),
                (certificates["bottom"](bottom.detach()) - images).abs().mean(),
                3e-3 * z.abs().sum(1).mean(),
            ]
            s = (z - z.mean(0)) / z.std(0).clamp(min=1e-8)
            losses.append(0.1 * (s[:, :16].T @ s[:, 16:] / len(z)).abs().mean())
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()
            optimizer.step()
            for loss in losses:
                loss.item()

    return epoch


def ours(data: Images, configs: list[Config], updates: int | None = None, ledger: bool = False) -> Step:
    """Return a function that trains configurations together, for one epoch or for `updates` updates."""
    tasks = [create(config, data) for config in configs]
    trainer = replace(configs[0].trainer, epochs=1)
    points = min(len(data.train_images), updates * trainer.batch_size) if updates else len(data.train_images)

    def training(task: Task, config: Config) -> Training:
        order = torch.Generator().manual_seed(config.seed)
        own = replace(config.trainer, epochs=1)
        return Training("train", task.objective(), task.batch, points, own, order)

    trainings = [training(task, config) for task, config in zip(tasks, configs, strict=True)]

    def epoch() -> None:
        fit = Fit(trainings, configs[0].trainer.precision, tasks[0].device)
        fit.run()

    return epoch


def ceiling(precision: str, device: str, rounds: int) -> float:
    """Return the best rate of a product of square matrices, of sizes 1024 to 4096, in FLOP per second."""
    best, dtype = 0.0, torch.bfloat16 if precision == "bfloat16" else torch.float32
    for n in (1024, 1536, 2048, 3072, 4096):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))

        def products(a: torch.Tensor = a, b: torch.Tensor = b) -> None:
            with computing("tf32" if precision == "tf32" else "float32", torch.device(device)):
                for _ in range(5):
                    a @ b

        seconds = timed({"product": products}, rounds, device)
        best = max(best, 5 * 2 * n**3 / min(seconds["product"]))
    return best


def epochs(device: str, rounds: int) -> list[Row]:
    """Measure seconds per epoch for the textbook form and several presets, and their shares of the ceiling."""
    overrides = {
        "paper": ["trainer=paper"],
        "paper, unrouted": ["trainer=paper", "routing=none"],
        "paper, float32": ["trainer=paper", "trainer.precision=float32"],
        "fast": ["trainer=fast"],
    }
    if device == "cuda":
        overrides["paper, TF32"] = ["trainer=paper", "trainer.precision=tf32"]
    configs = {name: configured(f"trainer.device={device}", *given) for name, given in overrides.items()}
    data = read(configs["fast"], device)
    steps = {"textbook": textbook(data, configs["paper"], device)}
    steps |= {name: ours(data, [config]) for name, config in configs.items()}
    before = {p: ceiling(p, device, rounds) for p in sorted({c.trainer.precision for c in configs.values()})}
    seconds = timed(steps, rounds, device)
    after = {p: ceiling(p, device, rounds) for p in before}
    rows = []
    for name, times in seconds.items():
        ratios = [a / b for a, b in zip(seconds["textbook"], times, strict=True)]
        row: Row = {"what": f"epoch, {name}", "seconds": spread(times), "times as fast as the textbook": spread(ratios)}
        if name in configs:
            precision = configs[name].trainer.precision
            top = max(before[precision], after[precision])
            reached = [FLOP_PER_IMAGE * IMAGES / t for t in times]
            row |= {
                "TFLOP/s": spread([r / 1e12 for r in reached]),
                "share of ceiling": spread([r / top for r in reached]),
            }
            row["ceiling TFLOP/s"] = f"{top / 1e12:.3g}"
        rows.append(row)
    overhead = [a / b for a, b in zip(seconds["paper"], seconds["paper, unrouted"], strict=True)]
    return [*rows, {"what": "routed epoch to unrouted, paper", "ratio": spread(overhead)}]


def stacks(device: str, rounds: int) -> list[Row]:
    """Measure runs per hour against the number of runs trained together, without evaluation and run folders."""
    rows = []
    sizes = (1, 2, 4) if device == "cpu" else (1, 2, 4, 8, 16, 20, 32)
    for preset in ("paper", "fast"):
        configs = [configured(f"trainer={preset}", f"trainer.device={device}", f"seed={s}") for s in range(max(sizes))]
        data, updates = read(configs[0], device), 4 if preset == "paper" else 12
        steps = {str(n): ours(data, configs[:n], updates) for n in sizes}
        trainer = configs[0].trainer
        needed = trainer.epochs * -(-IMAGES // trainer.batch_size)
        for name, times in timed(steps, rounds, device).items():
            rate = [int(name) * 3600 / (t / updates * needed) for t in times]
            rows.append({"what": f"{name} runs together, trainer={preset}", "runs per hour": spread(rate)})
    return rows


def growth(device: str, rounds: int) -> list[Row]:
    """Measure seconds per update against width and batch size."""
    variants = {f"width {w}": [f"model.hidden=[{w},{w // 4}]"] for w in (512, 1024, 2048, 4096)}
    variants |= {f"batch {b}": [f"trainer.batch_size={b}"] for b in (128, 512, 2048, 8192)}
    configs = {n: configured("trainer=paper", f"trainer.device={device}", *given) for n, given in variants.items()}
    data = read(next(iter(configs.values())), device)
    seconds = timed({name: ours(data, [config], 3) for name, config in configs.items()}, rounds, device)
    return [
        {"what": f"one update, {name}", "seconds": spread([t / 3 for t in times])} for name, times in seconds.items()
    ]


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
TARGETS = {"trainer=smoke without report": "at most 5 s", "report of trainer=smoke": "at most 3 s"}


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


def commands(device: str, rounds: int) -> list[Row]:
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
    rows = [{"what": n, "seconds": spread(times), "target": TARGETS.get(n, "")} for n, times in seconds.items()]
    for row in rows:
        if row["what"] in found:
            row["peak memory GiB"] = spread([peak for _, peak in found[row["what"]]])
    return rows


PARTS = {"epoch": epochs, "stack": stacks, "growth": growth, "command": commands}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(PARTS), help=f"comma-separated parts of {','.join(PARTS)}")
    parser.add_argument("--json", type=Path, metavar="FILE")
    a = parser.parse_args()
    if unknown := set(a.only.split(",")) - set(PARTS):
        parser.error(f"--only: unknown parts: {', '.join(unknown)}; use some of {','.join(PARTS)}")
    if a.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch finds no GPU; use --device cpu")
    name = torch.cuda.get_device_name() if a.device == "cuda" else hardware()["processor"]
    facts = {"date": time.strftime("%Y-%m-%d"), "device": name, **hardware(), "torch": torch.__version__}
    console, measured = Console(width=160), dict[str, list[Row]]()
    console.print(facts)
    for part in a.only.split(","):
        rows = measured[part] = PARTS[part](a.device, a.rounds)
        columns = list(dict.fromkeys(key for row in rows for key in row))
        table = Table(*columns, title=part)
        for row in rows:
            table.add_row(*(str(row.get(column, "")) for column in columns))
        console.print(table)
        if a.json:
            a.json.write_text(json.dumps(facts | measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
