"""Tune every unlearning baseline by the same number of trials, and measure the choices on fresh seeds.

python scripts/unlearning_sweep.py --trials 15 --seeds 3 --jobs 2            [OVERRIDE …] are overrides of every run
python scripts/unlearning_sweep.py --trials 2 --seeds 2 --preset smoke       tries it in a few minutes

Every trial makes `trainer.unlearn_steps` updates and starts from the trained model of its seed, which is trained once.
The rule of the choice is fixed here, before any trial:

- Seed 0 chooses, by the validation documents, which no table of results includes.
- Of the trials whose retain loss is at most 0.05 nats per token above the trained model's, the one with the highest
  forget loss after relearning from 64 documents (the lowest on the way) is chosen. If there is none, the one with the
  smallest rise of the retain loss is chosen, and marked.
- Seeds 1 to SEEDS make the choice again. The table has their means on the test documents, without seed 0.

UNDO's trials include its teacher's rate, so that its teacher is not tuned by trials of its own. The same command
continues a sweep that was stopped.
"""

import argparse
import itertools
import math
import os
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from gradroute.config.compose import configuration
from gradroute.config.limits import one_of
from gradroute.config.overrides import literal
from gradroute.errors import UserError, first_line
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.reporting.intervals import shown
from gradroute.running.exit_status import guarded

ALLOWED = 0.05  # nats per token by which a chosen trial may raise the retain loss
RELEARNED = "model_relearned_64"
COMMON = (
    "trained=auto", "relearn.documents=[64]", "completions=null", "dataset.test_stories=2000",
    "dataset.validation_stories=500",
)  # fmt: skip
Setting = dict[str, Any]  # values by key
SPACES: dict[str, dict[str, Sequence[Any]]] = {  # by experiment: the values to try of each key
    "rmu": {
        "unlearn.retain": (0.5, 2, 8, 32, 200),
        "unlearn.norm_factor": (1, 3, 10),
        "unlearn.layers": ([0, 1], [0, 1, 2], [0, 1, 2, 3]),
    },
    "max_entropy": {"unlearn.retain": (1, 4, 16, 64, 256), "unlearn.rate": (0.03, 0.1, 0.3, 1)},
    "gradient_difference": {"unlearn.retain": (0.5, 1, 2, 8, 32), "unlearn.rate": (0.01, 0.03, 0.1, 0.3)},
    "undo": {
        "unlearn.alpha": (0.1, 0.2, 0.4, 0.6, 0.8),
        "unlearn.rate": (0.1, 0.25, 0.5, 1),
        "unlearn.teacher.rate": (0.03, 0.1, 0.3),
    },
}
FIXED = {"rmu": ["unlearn.norm=null"]}


@dataclass(frozen=True)
class Trial:
    """A setting of a method, and seed 0's validation losses in nats per token; nan if the run failed.

    rise: rise of the retain loss over the trained model's.
    forgotten, relearned: the forget loss before and after relearning.
    """

    method: str
    setting: Setting
    rise: float = math.nan
    forgotten: float = math.nan
    relearned: float = math.nan

    @property
    def allowed(self) -> bool:
        """Whether the retain loss rose little enough."""
        return self.rise <= ALLOWED


def settings(space: Mapping[str, Sequence[Any]], count: int) -> list[Setting]:
    """Return `count` different settings of a grid in which the values of each key occur about equally often."""
    grid = list(itertools.product(*(range(len(values)) for values in space.values())))
    random.Random(0).shuffle(grid)
    used: Counter[tuple[int, int]] = Counter()
    found: list[Setting] = []
    for _ in range(count):
        point = min(grid, key=lambda point: sum(used[place] for place in enumerate(point)))
        grid.remove(point)
        used.update(enumerate(point))
        found.append({key: values[i] for i, (key, values) in zip(point, space.items(), strict=True)})
    return found


def overrides(method: str, seed: int, setting: Setting, more: Sequence[str]) -> list[str]:
    """Return the overrides of a run of a method; `base` only relearns. A trial keeps no weights."""
    steps = ["train", "relearn", "evaluate"] if method == "base" else ["train", "unlearn", "relearn", "evaluate"]
    own = [f"{key}={literal(value)}" for key, value in setting.items()]
    kept = ["checkpoint.keep=none"] if seed == 0 and method != "base" else []
    given = [f"experiment=stories_era/{method}", f"seed={seed}", f"steps={literal(steps)}", *kept]
    return [*given, *COMMON, *FIXED.get(method, ()), *own, *more]


def make(given: list[str]) -> Path | str:
    """Make a run, or find it finished; return its folder, or why it failed. Raises: UserError for a mistake."""
    from gradroute.running.runner import execute

    (outcome,) = execute([configuration(given)], reuse=True, watch=lambda step, rows: None)
    if isinstance(outcome, UserError):
        raise outcome
    return outcome if isinstance(outcome, Path) else first_line(outcome)


def made(runs: Sequence[list[str]], jobs: int) -> Iterator[Path | str]:
    """Make runs, `jobs` at a time, and yield each as soon as it and those before it are made."""
    if jobs == 1:
        yield from map(make, runs)
        return
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))  # of the processes
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        yield from pool.map(make, runs)


def losses(run: Path, split: str) -> dict[tuple[str, str], float]:
    """Return the last loss of each head and group of a split; of relearning on validation documents, the lowest."""
    found: dict[tuple[str, str], float] = {}
    for row in read_metrics(run, read_manifest(run)):
        if row["split"] == split and row["metric"] == "cross_entropy":
            key = row["head"], row["group"]
            lowest = split == "validation" and row["head"] == RELEARNED and key in found
            found[key] = min(found[key], row["value"]) if lowest else row["value"]
    return found


def judged(method: str, setting: Setting, run: Path | str) -> Trial:
    """Return a trial with its validation losses."""
    if isinstance(run, str):
        return Trial(method, setting)
    of = losses(run, "validation")
    rise = of["model_unlearned", "retain"] - of["model", "retain"]
    return Trial(method, setting, rise, of["model_unlearned", "forget"], of[RELEARNED, "forget"])


def choice(trials: Sequence[Trial]) -> Trial:
    """Return the trial that the rule chooses. Raises: UserError if every trial failed."""
    finished = [trial for trial in trials if not math.isnan(trial.rise)]
    if not finished:
        raise UserError(f"{trials[0].method}: every trial failed; see the runs' log.txt")
    allowed = [trial for trial in finished if trial.allowed]
    if not allowed:
        return min(finished, key=lambda trial: trial.rise)
    return max(allowed, key=lambda trial: trial.relearned)


def said(setting: Setting) -> str:
    """Return a setting as text."""
    return ", ".join(f"{key.removeprefix('unlearn.')} {literal(value)}" for key, value in setting.items())


def print_results(runs: Mapping[str, Sequence[Path | str]], chosen: Mapping[str, Trial]) -> None:
    """Print the test losses of the fresh seeds, one row for each method."""
    columns = "forget: trained | unlearned | relearned from 64 | retain: trained | unlearned"
    print(f"\n| method | chosen | seeds | {columns} |")
    print("|---" * 8 + "|")
    for method, paths in runs.items():
        found = [losses(path, "test") for path in paths if isinstance(path, Path)]
        if not found:
            print(f"| {method} | every run failed |" + " |" * 6)
            continue
        after = "model" if method == "base" else "model_unlearned"
        heads = ("model", "forget"), (after, "forget"), (RELEARNED, "forget"), ("model", "retain"), (after, "retain")
        cells = [shown([of[head] for of in found]) for head in heads]
        trial = chosen.get(method)
        how = "" if trial is None else said(trial.setting) + ("" if trial.allowed else f"; none within {ALLOWED}")
        print(f"| {method} | {how} | {len(found)} | {' | '.join(cells)} |")


def print_trials(trials: Sequence[Trial], chosen: Mapping[str, Trial]) -> None:
    """Print every trial."""
    print("\n| method | trial, seed 0, validation documents | retain: rise | forget: unlearned | relearned | chosen |")
    print("|---" * 6 + "|")
    for trial in trials:
        cells = " | ".join(f"{value:.3f}" for value in (trial.rise, trial.forgotten, trial.relearned))
        print(
            f"| {trial.method} | {said(trial.setting)} | {cells} | {'yes' if trial is chosen[trial.method] else ''} |"
        )


def parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    most = min(math.prod(len(values) for values in space.values()) for space in SPACES.values())
    parser.add_argument("--trials", type=int, default=15, choices=range(1, most + 1), metavar=f"1…{most}")
    parser.add_argument("--seeds", type=int, default=3, help="fresh seeds that make the choice again (default 3)")
    parser.add_argument("--preset", default="fast", help="trainer= of every run (default fast)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--only", default=",".join(SPACES), help="methods (default: %(default)s)")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE")
    found = parser.parse_intermixed_args(arguments)
    found.only = found.only.split(",")
    for method in found.only:
        one_of("--only", method, tuple(SPACES))
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the trials, choose, make the choices again, and print both tables."""
    a = parsed(arguments)
    more = [f"trainer={a.preset}", "output_dir=outputs/unlearning_sweep", *a.overrides]
    fresh = range(1, a.seeds + 1)
    base = list(made([overrides("base", seed, {}, more) for seed in (0, *fresh)], a.jobs))
    tried = [(method, setting) for method in a.only for setting in settings(SPACES[method], a.trials)]
    runs = made([overrides(method, 0, setting, more) for method, setting in tried], a.jobs)
    trials = [judged(method, setting, run) for (method, setting), run in zip(tried, runs, strict=True)]
    chosen = {method: choice([trial for trial in trials if trial.method == method]) for method in a.only}
    again = [(method, seed) for method in a.only for seed in fresh]
    finals = made([overrides(method, seed, chosen[method].setting, more) for method, seed in again], a.jobs)
    results: dict[str, list[Path | str]] = {"base": base[1:]}
    for (method, _), run in zip(again, finals, strict=True):
        results.setdefault(method, []).append(run)
    print_results(results, chosen)
    print_trials(trials, chosen)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
