"""Whether the beginning of a trial tells its end, and what is made of it."""

import math

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from scipy.stats import norm, spearmanr

from gradroute import UserError
from gradroute.search.fidelity import fidelities, halved, spearman, worse
from gradroute.search.schema import ObjectiveConfig, PruningConfig
from gradroute.search.space import check_start, space

RULE = PruningConfig(rule="halving", after=4)
SCORE = [ObjectiveConfig(goal="higher")]


def trial(curve: list[list[float]], end: float | None) -> FrozenTrial:
    state = TrialState.PRUNED if end is None else TrialState.COMPLETE
    return create_trial(
        params={"x": 0.0},
        distributions={"x": FloatDistribution(0, 1)},
        user_attrs={"curve": curve},
        state=state,
        value=end,
    )


def test_the_correlation_is_that_of_ranks_with_an_interval_in_fishers_z() -> None:
    first, second = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0], [2.0, 1.0, 3.0, 5.0, 4.0, 70.0, 6.0]
    found, low, high = spearman(first, second)
    assert found == pytest.approx(spearmanr(first, second).statistic)
    error = float(norm.ppf(0.975)) * math.sqrt((1 + found**2 / 2) / 4)
    assert (math.atanh(high) - math.atanh(low)) / 2 == pytest.approx(error, rel=1e-5)
    assert spearman([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == (0.0, -1.0, 1.0)  # too few
    assert spearman([1.0] * 5, [1.0, 2.0, 3.0, 4.0, 5.0]) == (0.0, -1.0, 1.0)


@pytest.mark.parametrize(("pairs", "least", "most"), [(4, -0.9, -0.3), (5, 0.0, 0.3), (20, 0.98, 1.0)])
def test_equal_ranks_of_few_pairs_say_little(pairs: int, least: float, most: float) -> None:
    ranks = [float(n) for n in range(pairs)]
    found, low, high = spearman(ranks, ranks)
    assert found == pytest.approx(1) and high == pytest.approx(1) and least < low < most
    assert spearman(ranks, ranks[::-1]) == pytest.approx((-found, -high, -low))


def test_only_trials_with_an_end_count_and_a_low_correlation_is_said() -> None:
    alike = [trial([[10, n], [20, n]], n) for n in range(5)]
    (early, late) = fidelities([*alike, trial([[10, 9]], None)], RULE)
    assert (early.step, early.count, late.step) == (10, 5, 20) and early.used
    assert early.correlation == pytest.approx(1)
    (turned,) = fidelities([trial([[10, -n]], n) for n in range(5)], RULE)
    assert not turned.used and "trials run their full length" in str(turned)
    assert fidelities(alike[:3], RULE) == []


def test_a_trial_ends_early_only_where_its_beginning_was_shown_to_tell_its_end() -> None:
    alike, turned = [[trial([[10, n]], sign * n) for n in range(6)] for sign in (1, -1)]
    why = worse([[10, -5.0]], alike, SCORE, RULE)
    assert why is not None and "Spearman 1.00" in why
    assert worse([[10, 50.0]], alike, SCORE, RULE) is None  # the best so far
    assert worse([[10, -5.0]], turned, SCORE, RULE) is None  # beginnings mislead
    assert worse([[10, -5.0]], alike[:3], SCORE, RULE) is None  # too few to say
    assert worse([[11, -5.0]], alike, SCORE, RULE) is None  # nothing is known there


def test_halving_is_optunas_own() -> None:
    curves = [[[10.0, n], [20.0, n + 1.0]] for n in (3, 1, 4, 1, 5)]
    study = optuna.create_study(
        direction="minimize", pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=10, reduction_factor=2)
    )
    ends = []
    for curve in curves:
        one = study.ask()
        for step, value in curve:
            one.report(value, int(step))
            ends.append(one.should_prune())
        study.tell(one, state=TrialState.PRUNED)
    ours = [halved(curve[: n + 1], curves[:k], False) for k, curve in enumerate(curves) for n in range(2)]
    assert ours == ends and True in ends and False in ends


@pytest.mark.parametrize(
    ("start", "says"),
    [
        ({"a": 2.0}, "search.start.a=2.0: must be from 0.0 to 1.0"),
        ({"b": "z"}, "search.start.b=z: must be one of"),
        ({"c": 1}, "unknown parameter of search.start: 'c'"),
    ],
)
def test_a_start_must_fit_the_space(start: dict[str, object], says: str) -> None:
    given = {"a": {"low": 0.0, "high": 1.0}, "b": {"choices": ["x", "y"]}, "u": {"parts": 2, "of": 8, "least": 1}}
    check_start({"a": 0.5, "b": "y", "u.0": 0.5}, space(given))
    with pytest.raises(UserError, match=says):
        check_start(start, space(given))
