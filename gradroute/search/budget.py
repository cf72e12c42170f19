"""How many trials a search makes, what they cost in updates, and which sampler of Optuna chooses them."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial, TrialState

from gradroute.records.tables import read_metrics
from gradroute.search.schema import SearchConfig

FIXED = ("handmade", "guess", "placebo")  # trials that no sampler chose
KEPT = ("kind", "fixed", "curve", "start")  # attributes that a trial keeps when its process was lost
MANY = 10_000  # trials, where a budget of updates limits them


def counts(search: SearchConfig) -> dict[str, int]:
    """Return how many trials of each study the method asks for, besides those that no sampler chose."""
    many = MANY if search.budget else 0
    if search.method == "tpe":
        return {"search": many or search.trials, "random": search.random}
    return {"search": 0, "random": (many or search.random or search.trials) if search.method == "random" else 0}


def spent(trials: Sequence[FrozenTrial]) -> int:
    """Return the updates that trials made, without those that no sampler chose."""
    return sum(trial.user_attrs.get("updates", 0) for trial in trials if trial.user_attrs.get("kind") not in FIXED)


def affords(budget: int | None, own: Sequence[FrozenTrial], every: Sequence[FrozenTrial]) -> bool:
    """Return whether a budget has room for one more trial of a study.

    Args:
        own: its trials so far; one that runs counts as the longest that is known. every: those of all studies.
    """
    whole = max((trial.user_attrs.get("updates", 0) for trial in every), default=0)
    busy = sum(trial.state == TrialState.RUNNING and trial.user_attrs.get("kind") not in FIXED for trial in own)
    return budget is None or spent(own) + whole * (busy + 1) <= budget


def updates_of(outcome: Path | Exception, trial: Mapping[str, Any]) -> int:
    """Return the updates that a trial's run made; if it ended early, as far as its last evaluation, by its curve."""
    made = max((int(row["step"]) for row in read_metrics(outcome)), default=0) if isinstance(outcome, Path) else 0
    curve = trial.get("curve", [])
    return made or int(curve[-1][0] if curve else 0)


def sampler(search: SearchConfig, name: str, trials: int) -> BaseSampler:
    """Return the sampler of a study's next trial, which depends on the number of trials so far only.

    So a resumed search makes the same trials as one that was never stopped.
    """
    seed = 2 * (search.seed * 100_003 + trials) + (name == "random")  # random search starts elsewhere
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if name == "random":
            return optuna.samplers.RandomSampler(seed)
        if search.sampler == "gp":
            return optuna.samplers.GPSampler(seed=seed)
        return optuna.samplers.TPESampler(seed=seed, constant_liar=True)
