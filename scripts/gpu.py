"""Measure on one GPU what is open there, in parts that each write a file; see `scripts/gpu.sh`.

Every part runs in a process of its own with the time that is left, and writes `gpu_PART.json`. What could not be done
is printed at the end. `--dry-run` does all of it in small on a CPU, in seconds, and shows only that the script works.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from figures import Figure
from language_throughput import COMPILED, KINDS, kind
from split_speed import FLOP_PER_IMAGE, SQUARES, best_product, ours, precision_of
from turns import timed, waited

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.images.dataset import Images
from gradroute.records.provenance import git_commit, hardware
from gradroute.tasks.language import LanguageModelling
from gradroute.training.devices import computing
from gradroute.training.gradients import Single

ROOT = Path(__file__).parents[1]
MEASURED = ROOT / "outputs" / "measured"
IMAGES = 60_000
SHORTEST = 20  # seconds that a part needs at least


@dataclass(frozen=True)
class Scale:
    """How large everything is: on a GPU as asked, or in small on a CPU."""

    device: str
    rounds: int
    updates: dict[str, int]  # of one measurement, by preset
    stacks: tuple[int, ...]
    images: list[str]  # overrides of every training on images
    stories: dict[str, list[str]]  # models of language, by name
    command: list[str]  # overrides of every whole command
    squares: tuple[int, ...] = SQUARES  # sizes of matrices for the best product


SMALL = ["experiment=stories_era", "trainer=smoke", "dataset.stories=40", "dataset.test_stories=40",
         "dataset.length=32", "model.width=16", "model.heads=2", "completions=null"]  # fmt: skip
DRY = Scale(
    "cpu", 1, {"paper": 1, "fast": 1}, (1, 2), ["model.hidden=[8]", "trainer.batch_size=16"], {"tiny": SMALL},
    ["trainer=smoke", "trainer.device=cpu", "trainer.train_limit=64", "trainer.test_limit=32", "model.hidden=[8]"],
    squares=(256,),
)  # fmt: skip
FULL = Scale(
    "cuda", 3, {"paper": 30, "fast": 120}, (1, 8, 32, 128), [],
    {
        "28M": ["experiment=stories_era", "model=transformer_28m", "trainer=paper"],
        "303M": ["experiment=stories_era", "model=transformer_303m", "trainer=paper", "trainer.batch_size=16"],
    },
    [],
)  # fmt: skip


def _facts(scale: Scale) -> dict[str, Any]:
    card = torch.cuda.get_device_name() if scale.device == "cuda" else "none"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "torch": torch.__version__,
        "gpu": card,
        "commit": git_commit(),
        **hardware(),
    }


def _median(step: Callable[[], object], scale: Scale) -> list[float]:
    """Return the seconds of each round, after warm-up; that of a captured update has four updates of every kind."""
    seconds = []
    for number in range(scale.rounds + 2):
        started = time.perf_counter()
        step()
        waited(scale.device)
        if number >= 2:
            seconds.append(time.perf_counter() - started)
    return seconds


def _configs(scale: Scale, preset: str, count: int, *more: str) -> list[Config]:
    given = [f"trainer={preset}", f"trainer.device={scale.device}", *scale.images, *more]
    return [configuration([*given, f"seed={seed}"]) for seed in range(count)]


def _images(scale: Scale) -> Images:
    config, limits = _configs(scale, "paper", 1)[0], (64, 32) if scale is DRY else ()
    images: Images = build(config.dataset, "dataset").tensors(*limits)
    return images.to(torch.device(scale.device))


def tests(scale: Scale) -> list[Figure]:
    """Run the tests marked `gpu`; without one, only find them."""
    more = ["--collect-only"] if scale is DRY else []
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-o", "addopts=", "-q", "-m", "gpu", *more]
    result = subprocess.run([*command, "tests/training/test_on_a_gpu.py"], cwd=ROOT, check=False)
    return [Figure("tests that need a GPU: exit status", [float(result.returncode)], 0, at_most=True)]


def command(scale: Scale) -> list[Figure]:
    """Time whole commands, and the training in them."""
    found = []
    for preset, whole, training in (("fast", 10, 3), ("paper", 14, 6)):
        with tempfile.TemporaryDirectory() as folder:
            given = ["experiment=mnist_split", f"trainer={preset}", f"output_dir={folder}", *scale.command]
            started = time.perf_counter()
            subprocess.run([sys.executable, "-m", "gradroute", *given], check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - started
            (manifest,) = Path(folder).rglob("manifest.json")
            trained = float(json.loads(manifest.read_text())["train_seconds"])
        found.append(Figure(f"mnist_split, {preset}: seconds of the whole command", [seconds], whole, at_most=True))
        found.append(Figure(f"mnist_split, {preset}: seconds of its training", [trained], training, at_most=True))
    return found


def update(scale: Scale) -> list[Figure]:
    """Time an update of one run: captured and not, in bfloat16 and in TF32."""
    found, data = [], _images(scale)
    kinds = {"captured": [], "one by one": ["trainer.graph=false"], "deterministic": ["trainer.deterministic=true"]}
    if scale.device == "cuda":
        kinds["captured, tf32"] = ["trainer.precision=tf32"]
    for preset, updates in scale.updates.items():
        for name, more in kinds.items():
            (config,) = _configs(scale, preset, 1, *more)
            step = ours(data, [config], updates * config.trainer.batch_size)
            values = [1e3 * seconds / updates for seconds in _median(step, scale)]
            found.append(Figure(f"{preset}, {name}: ms an update", values))
    return found


def stack(scale: Scale) -> list[Figure]:
    """Time an update of each run in stacks, as a share of the best product, and what table 2 then takes."""
    found, data = [], _images(scale)
    for preset, updates in scale.updates.items():
        configs = _configs(scale, preset, max(scale.stacks))
        trainer, precision = configs[0].trainer, precision_of(configs[0], scale.device)
        best = best_product(precision, scale.device, scale.squares)
        for size in scale.stacks:
            step = ours(data, configs[:size], updates * trainer.batch_size)
            times = [seconds / updates / size for seconds in _median(step, scale)]
            asked = preset == "paper" and size == 32
            name = f"{preset}, stack of {size}"
            found.append(
                Figure(f"{name}: ms an update and run", [1e3 * t for t in times], 0.40 if asked else None, True)
            )
            shares = [FLOP_PER_IMAGE * trainer.batch_size / t / best for t in times]
            found.append(Figure(f"{name}: share of the best product", shares, 0.42 if asked else None))
            needed = trainer.epochs * -(-IMAGES // trainer.batch_size)
            found.append(Figure(f"{name}: runs an hour, training alone", [3600 / (t * needed) for t in times]))
    return found


def row(scale: Scale) -> list[Figure]:
    """Time one row of table 2 with 20 seeds, evaluation and folders; ten rows are table 2."""
    found, seeds = [], 2 if scale is DRY else 20
    for preset, minutes in (("fast", 3), ("paper", 9)):
        with tempfile.TemporaryDirectory() as folder:
            given = ["experiment=mnist_table2/row1", f"trainer={preset}", f"seeds={seeds}", f"output_dir={folder}"]
            started = time.perf_counter()
            whole = [sys.executable, "-m", "gradroute", *given, *scale.command]
            subprocess.run(whole, check=True, stdout=subprocess.DEVNULL)
            taken = 10 * (time.perf_counter() - started) / 60
        found.append(Figure(f"{preset}: minutes for table 2, from one row of it", [taken], minutes, at_most=True))
    return found


def language(scale: Scale) -> list[Figure]:
    """Time a language model's step: unrouted, routed, with penalties and ledger; compiled and not."""
    found = []
    for model, given in scale.stories.items():
        config = configuration([*given, f"trainer.device={scale.device}"])
        for suffix in ("", COMPILED) if scale.device == "cuda" else ("",):
            times = {}
            for what in KINDS:
                with ExitStack() as opened:
                    step, tokens = kind(config, what, opened if suffix else None)
                    times[what] = _median(step, scale)
                    rates = [tokens / t for t in times[what]]
                    found.append(Figure(f"{model}, {what}{suffix}: tokens a second", rates))
            for what in KINDS[1:]:
                ratios = [a / b for a, b in zip(times[what], times[KINDS[0]], strict=True)]
                found.append(Figure(f"{model}, {what}{suffix}: ratio to unrouted", ratios, 1.05, at_most=True))
    return found


def sgtm(scale: Scale) -> list[Figure]:
    """Time SGTM's step against that of ERA, in turns."""
    steps = {}
    more = SMALL[1:] if scale is DRY else ["trainer=paper"]
    for name in ("stories_era", "stories_era/sgtm"):
        config = configuration([f"experiment={name}", *more, f"trainer.device={scale.device}"])
        steps[name] = _parameter_step(config)
    times = timed(steps, 4 * scale.rounds, 2, scale.device)
    base = statistics.median(times["stories_era"])
    ratios = [t / base for t in times["stories_era/sgtm"]]
    return [Figure("SGTM's step to ERA's", ratios, 1.3, at_most=True)]


def _parameter_step(config: Config) -> Callable[[], None]:
    """Return an update on random rows of a language model with its routes of parameters, without a ledger."""
    task = LanguageModelling(config)
    objective, trainer, known = task.objective(), config.trainer, task.known
    program = Single(objective, trainer, lambda: computing(trainer.precision, task.device), task.parameter_router)
    order = torch.Generator().manual_seed(0)

    def step() -> None:
        rows = torch.randint(task.points, (trainer.batch_size,), generator=order)
        if known and task.parameter_router:
            objective.there = known.there[rows]
        program.gradients([task.batch(rows.to(task.device))])
        program.update()

    return step


PARTS: dict[str, Callable[[Scale], list[Figure]]] = {
    "tests": tests, "command": command, "update": update, "stack": stack, "row": row, "language": language,
    "sgtm": sgtm,
}  # fmt: skip


def make(part: str, scale: Scale, file: Path) -> None:
    """Measure a part, print its figures and write them."""
    found = PARTS[part](scale)
    if scale is DRY:  # small sizes on a CPU reach or miss no target
        found = [replace(figure, target=None) for figure in found]
    file.write_text(json.dumps(_facts(scale) | {"figures": [figure.row() for figure in found]}, indent=2) + "\n")
    for figure in found:
        print("  ".join(figure.shown().values()), flush=True)


def main(arguments: list[str] | None = None) -> int:
    """Make the parts that have no file yet, while there is time; return 1 if something could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--again", action="store_true", help="make parts again that have a file")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--out", type=Path, default=None, help="folder of the files; outputs/measured by default")
    parser.add_argument("--part", default=None, help=argparse.SUPPRESS)  # in a process of its own
    a = parser.parse_args(arguments)
    scale, ends, missing = DRY if a.dry_run else FULL, time.monotonic() + 60 * a.minutes, list[str]()
    folder = a.out or (Path(tempfile.mkdtemp()) if a.dry_run else MEASURED)
    if a.part:
        make(a.part, scale, folder / f"gpu_{a.part}.json")
        return 0
    if not a.dry_run and not torch.cuda.is_available():
        print("there is no GPU here: scripts/gpu.sh --dry-run shows that the script works")
        return 2
    for part in a.only.split(","):
        file, left = folder / f"gpu_{part}.json", ends - time.monotonic()
        if file.exists() and not a.again:
            print(f"{part}: {file} is there")
        elif left < SHORTEST:
            missing.append(f"{part}: no time was left")
        else:
            print(f"{part}: {left:.0f} s are left", flush=True)
            reason = _apart(part, a.dry_run, folder, left)
            missing += [f"{part}: {reason}"] if reason else []
    print("\n".join(["could not be done:", *missing]) if missing else "all parts are done")
    return int(bool(missing))


def _apart(part: str, dry: bool, folder: Path, seconds: float) -> str | None:
    """Make a part in a process of its own, which is ended after so many seconds; return why it could not be done."""
    command = [sys.executable, __file__, "--part", part, "--out", str(folder), *(["--dry-run"] if dry else [])]
    try:
        result = subprocess.run(command, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return f"it was not done after {seconds:.0f} s"
    return None if result.returncode == 0 else f"it failed with exit status {result.returncode}, see above"


if __name__ == "__main__":
    raise SystemExit(main())
