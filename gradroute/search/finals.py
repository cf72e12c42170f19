"""The finals of a search: its best trials, the hand-made mask and the guess, repeated with fresh seeds."""

import hashlib
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout
from optuna.trial import FrozenTrial, TrialState

from gradroute.comparison.runs import distinct, read_run
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.run_reader import twin
from gradroute.reporting.intervals import interval
from gradroute.running.exit_status import one_line
from gradroute.search.budget import FIXED
from gradroute.search.methods import control, designs
from gradroute.search.objectives import by_reference
from gradroute.search.space import Overrides
from gradroute.search.study import Search

HANDMADE, CONTROL = "handmade", "control"


@dataclass(frozen=True)
class Final:
    """A finalist: its name, kind and overrides, and its objectives, one row of `values` per finished seed."""

    name: str
    kind: str
    overrides: Overrides
    seeds: list[int]
    values: list[list[float]]

    def of(self, objective: int) -> list[float]:
        """Return an objective's values over the seeds."""
        return [row[objective] for row in self.values]


@dataclass(frozen=True)
class Difference:
    """The difference of two finalists' means, the half-width of its interval, and the verdict."""

    value: float
    half_width: float
    verdict: str  # better, worse, or not shown


def label(kind: str, trial: FrozenTrial) -> str:
    """Return a trial's name in tables and figures."""
    return HANDMADE if kind == HANDMADE else f"{kind} {trial.number}"


def front(search: Search, name: str) -> list[FrozenTrial]:
    """Return the Pareto front of a study's own trials; with one objective, the best of them.

    Trials that are no worse than the hand-made mask in any objective come first, then those that miss it least.
    """
    goals = [1 if one.goal == "lower" else -1 for one in search.search.objectives.values()]

    def costs(trial: FrozenTrial) -> list[float]:
        return [sign * value for sign, value in zip(goals, trial.values, strict=True)]

    done = [t for t in search.trials(name) if t.state == TrialState.COMPLETE and t.user_attrs.get("kind") not in FIXED]
    finished = [t for t in search.trials("search") if t.state == TrialState.COMPLETE]
    handmade = next((costs(t) for t in finished if t.user_attrs.get("kind") == HANDMADE), None)
    return [done[place] for place in by_reference([costs(trial) for trial in done], handmade)]


def finalists(search: Search) -> list[tuple[str, str, Overrides]]:
    """Return name, kind and overrides of each finalist: hand-made mask, guess, placebos, the best of both studies."""
    fixed = [t for t in search.trials("search") if t.user_attrs.get("kind") in FIXED and "overrides" in t.user_attrs]
    kinds = [(trial.user_attrs["kind"], trial) for trial in fixed]
    found = [(label(kind, trial), kind, trial.user_attrs["overrides"]) for kind, trial in kinds]
    found += [(CONTROL, CONTROL, control(search))] if search.search.final.control else []
    found += [(name, name, overrides) for name, overrides in designs(search).items()]
    for name in search.studies:
        best = front(search, name)[: search.search.final.best]
        found += [(label(name, trial), name, trial.user_attrs["overrides"]) for trial in best]
    return found


def _seeds(search: Search) -> range:
    first = search.search.final.first_seed
    return range(first, first + search.search.final.seeds)


def _made(config: Config) -> Path | None:
    """Return the finished run of a configuration, or None."""
    from gradroute.training.devices import settle_precision

    settle_precision(config)  # as the runner does
    found = twin(config)
    return found[0] if found and found[1] else None


def make(search: Search) -> None:
    """Make the missing final runs; several processes can share them."""
    from gradroute.running.runner import execute

    found = [search.config(overrides, True) for *_, overrides in finalists(search)]
    waiting = [replace(config, seed=seed) for seed in _seeds(search) for config in found]
    for wait in (False, True):  # first what no other process makes, then what another left unfinished
        for config in waiting:
            if _made(config):
                continue
            lock = FileLock(search.folder / f".final-{hashlib.sha256(repr(config).encode()).hexdigest()[:16]}")
            try:
                with lock.acquire(timeout=-1 if wait else 0):
                    outcome = execute([config], reuse=True, watch=lambda step, rows: None)[0]
                    search.say(f"final: {one_line(outcome) if isinstance(outcome, Exception) else outcome}")
            except Timeout:
                continue


def results(search: Search) -> list[Final]:
    """Return every finalist with its objectives by seed, from the finished runs of `make`.

    Of runs with bit-identical numbers only the first counts: the seed changed nothing, so they are one sample.
    """
    finals = []
    for name, kind, overrides in finalists(search):
        config = search.config(overrides, True)
        made = [run for seed in _seeds(search) if (run := _made(replace(config, seed=seed)))]
        values = {run: search.values(run) for run in made}
        runs, again = distinct(map(read_run, made))
        if again:
            search.say(f"{name}: not counted, since their numbers are those of another seed to the bit: "
                       + ", ".join(str(read.path) for read in again))  # fmt: skip
        seeds = [read.settings["seed"] for read in runs]
        finals.append(Final(name, kind, overrides, seeds, [values[read.path] for read in runs]))
    return finals


def difference(ours: Sequence[float], theirs: Sequence[float], goal: str, comparisons: int) -> Difference:
    """Return Welch's t-interval of a difference of means, at 95 % for all `comparisons` together (Bonferroni).

    The verdict is better or worse only if the interval excludes 0.

    Raises: UserError for fewer than two values on a side.
    """
    if min(len(ours), len(theirs)) < 2:
        raise UserError("a difference needs two or more finished runs on each side")
    value = statistics.fmean(ours) - statistics.fmean(theirs)
    if len({*ours}) == 1 and len({*theirs}) == 1:
        half = 0.0  # neither side has any spread
    else:
        from scipy.stats import ttest_ind

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)  # expected if one side has no spread
            span = ttest_ind(ours, theirs, equal_var=False).confidence_interval(1 - 0.05 / comparisons)
        half = float(span.high - span.low) / 2
    if abs(value) <= half:
        return Difference(value, half, "not shown")
    return Difference(value, half, "better" if (value < 0) == (goal == "lower") else "worse")


def mean(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean and the half-width of its 95 % t-interval."""
    return statistics.fmean(values), interval(list(values))


def _said(differences: Mapping[str, Difference]) -> str:
    return "; ".join(f"{name} {d.value:+.4f} ± {d.half_width:.4f} ({d.verdict})" for name, d in differences.items())


def verdict(search: Search, finals: Sequence[Final]) -> list[str]:
    """Compare the finalists with the hand-made mask, and the best of the search with that of random search.

    The best of a kind is the first of its `front`. Returns: sentences, which say what differs beyond seed noise.
    """
    whole = [final for final in finals if len(final.values) > 1]
    best = {final.kind: final for final in reversed(whole)}
    objectives = search.search.objectives
    if HANDMADE not in best or len(whole) < 2:
        return ["No finals: nothing is claimed about any trial, because it has one seed and was chosen by its value."]

    def minus(ours: Final, theirs: Final, finalists: int) -> dict[str, Difference]:
        return {
            name: difference(ours.of(number), theirs.of(number), one.goal, finalists * len(objectives))
            for number, (name, one) in enumerate(objectives.items())
        }

    found = {final.name: minus(final, best[HANDMADE], len(whole) - 1) for final in whole if final.kind != HANDMADE}
    lines = [f"{name} minus the hand-made mask, on fresh seeds: {_said(differences)}." for name, differences in
             found.items()]  # fmt: skip
    if "search" in best and "random" in best:
        drawn = minus(best["search"], best["random"], 1)
        lines.insert(
            0, f"{best['search'].name} minus {best['random'].name}, the best of random search: {_said(drawn)}."
        )
    if "search" in best:
        judged = {d.verdict for d in found[best["search"].name].values()}
        if {"better", "worse"} <= judged:
            word = "trades one objective for another"
        elif judged == {"not shown"}:
            word = "is not shown to differ from the hand-made mask"
        else:
            word = f"is {'better' if 'better' in judged else 'worse'} than the hand-made mask"
        lines.insert(0, f"The first trial of the search's front, {best['search'].name}, {word} beyond seed noise.")
    return [*lines, "Intervals of differences hold at 95 % for all comparisons together (Welch, Bonferroni)."]
