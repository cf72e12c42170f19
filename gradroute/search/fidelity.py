"""Whether the beginning of a run tells how it ends: the rank correlation, and successive halving where it is high."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import optuna
from optuna.trial import FrozenTrial, TrialState

from gradroute.search.objectives import Point, hopeless
from gradroute.search.schema import ObjectiveConfig, PruningConfig


@dataclass(frozen=True)
class Fidelity:
    """Spearman's rank correlation of the score after `step` updates with the score at the end, over `count` trials.

    low, high: its 95 % interval. used: whether it is high enough for trials to be given up at this step.
    """

    step: int
    count: int
    correlation: float
    low: float
    high: float
    used: bool

    def __str__(self) -> str:
        what = "trials may end there" if self.used else "trials run their full length"
        found = f"{self.correlation:.2f}, 95 % interval {self.low:.2f} to {self.high:.2f}"
        return f"score after {self.step} updates and at the end: Spearman {found}, over {self.count} trials; {what}"


def spearman(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """Return Spearman's correlation and its 95 % interval, by Fisher's z with the error of Bonett and Wright (2000).

    With fewer than four pairs, or where one side has no spread, nothing is known: 0, from -1 to 1. For the interval,
    the correlation counts as half a step below that of equal ranks at most: of 1, z is infinite and has no interval.
    """
    from scipy.stats import spearmanr

    if len(first) < 4 or len({*first}) < 2 or len({*second}) < 2:
        return 0.0, -1.0, 1.0
    found = float(spearmanr(first, second).statistic)
    pairs = len(first)
    most = 1 - 6 / (pairs * (pairs**2 - 1))  # a step, two ranks that are exchanged, is twice as large
    clipped = min(most, max(-most, found))
    error = math.sqrt((1 + clipped**2 / 2) / (pairs - 3))
    low, high = (math.tanh(math.atanh(clipped) + sign * 1.959964 * error) for sign in (-1, 1))
    return found, min(low, found), max(high, found)


def fidelities(trials: Sequence[FrozenTrial], rule: PruningConfig) -> list[Fidelity]:
    """Return the correlation at every step that `rule.after` or more finished trials were evaluated at.

    The score is the first objective. Trials that were given up have no end, and do not count.
    """
    done = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    pairs: dict[int, list[tuple[float, float]]] = {}
    for trial in done:
        for point in trial.user_attrs.get("curve", []):
            if len(point) > 1:
                pairs.setdefault(int(point[0]), []).append((point[1], trial.values[0]))
    found = []
    for step, both in sorted(pairs.items()):
        if len(both) >= rule.after:
            correlation, low, high = spearman(*zip(*both, strict=True))
            found.append(Fidelity(step, len(both), correlation, low, high, correlation >= rule.correlation))
    return found


def halved(own: Sequence[Point], others: Sequence[Sequence[Point]], higher: bool, reduction: int = 2) -> bool:
    """Return whether Optuna's successive halving gives up a trial at its last point.

    Args:
        own: the trial's curve so far: number of updates, then values, of which the first counts. others: those of
            earlier trials, in order.
        higher: whether a higher value is better. reduction: one in so many goes on at each rung.
    """
    first = min(int(curve[0][0]) for curve in [*others, own] if curve)
    pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=reduction)
    study = optuna.create_study(direction="maximize" if higher else "minimize", pruner=pruner)
    for curve in others:
        _replayed(study, curve)
    return _replayed(study, own)


def _replayed(study: optuna.Study, curve: Sequence[Point]) -> bool:
    """Replay a curve in a study, and return whether the pruner ends it at its last point."""
    trial, ends = study.ask(), False
    for point in curve:
        if len(point) > 1:
            trial.report(point[1], int(point[0]))
            ends = trial.should_prune()
    study.tell(trial, state=TrialState.FAIL if not curve else TrialState.PRUNED)
    return ends


def worse(
    own: Sequence[Point], trials: Sequence[FrozenTrial], objectives: Sequence[ObjectiveConfig], rule: PruningConfig
) -> str | None:
    """Return why a trial is given up at the last point of its curve; None if it goes on."""
    others = [trial.user_attrs.get("curve", []) for trial in trials if trial.state.is_finished()]
    if rule.rule == "median":
        lost = hopeless(own[-1], others, objectives, rule)
        return "worse in every objective than the median of earlier trials" if lost else None
    known = next((one for one in fidelities(trials, rule) if one.used and one.step == own[-1][0]), None)
    if known is None or not halved(own, [curve for curve in others if curve], objectives[0].goal == "higher"):
        return None
    return f"successive halving; {known}"
