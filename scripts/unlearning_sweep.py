"""Tune every unlearning baseline by the same number of trials, and measure the choices on fresh seeds.

python scripts/unlearning_sweep.py --trials 15 --seeds 3 --jobs 2            [OVERRIDE …] are overrides of every run
python scripts/unlearning_sweep.py --trials 2 --seeds 2 --preset smoke       tries it in a few minutes
python scripts/unlearning_sweep.py --results FILE.csv          keeps the numbers there, and continues from them
python scripts/unlearning_sweep.py --results FILE.csv --table  makes no runs

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
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import study_runs
from kept import Kept, Key, Numbers
from study_runs import Planned, losses, make_and_keep

from gradroute.config.limits import one_of
from gradroute.config.overrides import literal
from gradroute.errors import UserError
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
VARIED = ("method", "setting", "documents", "seed", "overrides")  # columns of the results
KEYS = ("forget_trained", "forget", "relearned", "retain_trained", "retain")  # losses in nats per token


@dataclass(frozen=True)
class Run:
    """A run of a method. Seed 0 is judged by the validation documents, the others by the test documents."""

    method: str
    setting: Setting
    seed: int

    @property
    def split(self) -> str:
        """The documents that it is judged by."""
        return "test" if self.seed else "validation"


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


def overrides(run: Run, more: Sequence[str]) -> list[str]:
    """Return the overrides of a run; `base` only relearns. A trial keeps no weights."""
    base = run.method == "base"
    steps = ["train", "relearn", "evaluate"] if base else ["train", "unlearn", "relearn", "evaluate"]
    own = [f"{key}={literal(value)}" for key, value in run.setting.items()]
    kept = [] if run.seed or base else ["checkpoint.keep=none"]
    given = [f"experiment=stories_era/{run.method}", f"seed={run.seed}", f"steps={literal(steps)}", *kept]
    return [*given, *COMMON, *FIXED.get(run.method, ()), *own, *more]


def ends(run: Run, folder: Path) -> Numbers:
    """Return a run's losses of trained, unlearned and relearned model."""
    of, after = losses(folder, run.split), "model" if run.method == "base" else "model_unlearned"
    heads = ("model", "forget"), (after, "forget"), (RELEARNED, "forget"), ("model", "retain"), (after, "retain")
    return dict(zip(KEYS, map(of.__getitem__, heads), strict=True))


def judged(run: Run, found: Numbers | None) -> Trial:
    """Return a trial with its validation losses."""
    if found is None:
        return Trial(run.method, run.setting)
    return Trial(
        run.method, run.setting, found["retain"] - found["retain_trained"], found["forget"], found["relearned"]
    )


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


def print_results(runs: Mapping[str, Sequence[Numbers | None]], chosen: Mapping[str, Trial]) -> None:
    """Print the test losses of the fresh seeds, one row for each method."""
    columns = "forget: trained | unlearned | relearned from 64 | retain: trained | unlearned"
    print(f"\n| method | chosen | seeds | {columns} |")
    print("|---" * 8 + "|")
    for method, found in runs.items():
        finished = [own for own in found if own is not None]
        cells = [shown([own[key] for own in finished]) if finished else "" for key in KEYS]
        trial = chosen.get(method)
        how = "" if trial is None else said(trial.setting) + ("" if trial.allowed else f"; none within {ALLOWED}")
        print(f"| {method} | {how} | {len(finished)} | {' | '.join(cells)} |")


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
    parser.add_argument("--only", default=",".join(SPACES), help="methods (default: %(default)s)")
    found = study_runs.parsed(parser, arguments)
    found.only = found.only.split(",")
    for method in found.only:
        one_of("--only", method, tuple(SPACES))
    return found


class Study:
    """The runs of a sweep: those whose numbers are not kept are made, unless only the tables are asked for."""

    def __init__(self, a: argparse.Namespace) -> None:
        self.more = [f"trainer={a.preset}", "output_dir=outputs/unlearning_sweep", *a.overrides]
        self.asked = " ".join([f"trainer={a.preset}", *a.overrides])
        self.kept, self.jobs, self.table = Kept(a.results, VARIED, KEYS), a.jobs, a.table

    def numbers(self, runs: Sequence[Run]) -> list[Numbers | None]:
        """Return each run's numbers; None for one that failed or, if only the tables are asked for, is missing."""
        keys = [(run.method, said(run.setting), run.split, str(run.seed), self.asked) for run in runs]
        if not self.table:
            plans = [self.planned(run, key) for run, key in zip(runs, keys, strict=True) if key not in self.kept.found]
            make_and_keep(plans, self.kept, self.jobs)
        return [self.kept.found.get(key) for key in keys]

    def planned(self, run: Run, key: Key) -> Planned:
        """Return a run to make, whose row has this key."""
        name = f"{run.method}, {said(run.setting)}, seed {run.seed}"
        return Planned(name, overrides(run, self.more), lambda folder: {key: ends(run, folder)})


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the trials, choose, make the choices again, and print both tables."""
    a = parsed(arguments)
    study, fresh = Study(a), range(1, a.seeds + 1)
    base = study.numbers([Run("base", {}, seed) for seed in (0, *fresh)])
    tried = [Run(method, setting, 0) for method in a.only for setting in settings(SPACES[method], a.trials)]
    trials = list(map(judged, tried, study.numbers(tried)))
    if a.table:
        trials = [trial for trial in trials if not math.isnan(trial.rise)]
    if not trials:
        raise study.kept.nothing()
    methods = list(dict.fromkeys(trial.method for trial in trials))
    chosen = {method: choice([trial for trial in trials if trial.method == method]) for method in methods}
    finals = [Run(method, chosen[method].setting, seed) for method in methods for seed in fresh]
    results: dict[str, list[Numbers | None]] = {"base": base[1:]}
    for run, found in zip(finals, study.numbers(finals), strict=True):
        results.setdefault(run.method, []).append(found)
    print_results(results, chosen)
    print_trials(trials, chosen)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
