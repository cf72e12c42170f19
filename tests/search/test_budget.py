"""What a search may spend, and what chooses its trials."""

from dataclasses import replace

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from gradroute.search.budget import affords, counts, sampler, spent, updates_of
from gradroute.search.schema import SearchConfig


def trial(updates: int, kind: str | None = None, state: TrialState = TrialState.COMPLETE) -> FrozenTrial:
    attributes = {"updates": updates} | ({"kind": kind} if kind else {})
    value = 1.0 if state == TrialState.COMPLETE else None
    return create_trial(user_attrs=attributes, state=state, value=value)


def test_a_budget_counts_updates_of_chosen_trials_and_keeps_room_for_a_whole_one() -> None:
    own = [trial(100, "handmade"), trial(100), trial(40, state=TrialState.PRUNED)]
    assert spent(own) == 140
    assert affords(240, own, own) and not affords(239, own, own) and affords(None, own, own)
    busy = [*own, trial(0, state=TrialState.RUNNING)]
    assert affords(340, busy, busy) and not affords(339, busy, busy)


@pytest.mark.parametrize(
    ("method", "budget", "expected"),
    [
        ("tpe", None, (7, 3)), ("random", None, (0, 3)), ("pilot", None, (0, 0)), ("learned", 50, (0, 0)),
        ("random", 50, (0, 10_000)), ("tpe", 50, (10_000, 3)),
    ],
)  # fmt: skip
def test_methods_ask_for_their_own_trials(method: str, budget: int | None, expected: tuple[int, int]) -> None:
    search = SearchConfig(method=method, budget=budget, trials=7, random=3)
    assert tuple(counts(search).values()) == expected
    assert counts(replace(search, random=0))["random"] == (0 if method != "random" else 10_000 if budget else 7)


def test_a_trial_that_ended_early_made_as_many_updates_as_its_last_evaluation() -> None:
    assert updates_of(RuntimeError(), {"curve": [[10, 0.1], [20, 0.2]]}) == 20
    assert updates_of(RuntimeError(), {}) == 0


def test_samplers_are_those_that_were_asked_for_and_go_on_alike() -> None:
    def made() -> list[float]:
        study = optuna.create_study(directions=["minimize", "minimize"])
        for number in range(12):
            study.sampler = sampler(SearchConfig(), "search", number)
            one = study.ask({"x": FloatDistribution(-1.0, 1.0)})
            study.tell(one, [(one.params["x"] - 0.5) ** 2, (one.params["x"] - 0.4) ** 2])
        return [one.params["x"] for one in study.trials]

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    assert made() == made()
    assert type(sampler(SearchConfig(sampler="gp"), "search", 0)) is optuna.samplers.GPSampler
    assert type(sampler(SearchConfig(sampler="gp"), "random", 0)) is optuna.samplers.RandomSampler
