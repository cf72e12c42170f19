"""What a search may be: its space, its objectives, its file."""

from collections.abc import Sequence
from typing import Any

import optuna
import pytest
import scipy.stats
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute import UserError
from gradroute.config.overrides import literal
from gradroute.search.finals import difference
from gradroute.search.objectives import by_reference, hopeless, pareto, value_of
from gradroute.search.schema import ObjectiveConfig, PruningConfig, search_from
from gradroute.search.space import Choices, Parts, Range, dimension, ends

plain = (
    st.none()
    | st.booleans()
    | st.integers(-(10**6), 10**6)
    | st.floats(-1e6, 1e6, allow_nan=False)
    | st.text(max_size=12)
)
WORDS = ("null", "true", "false", "yes", "no", "on", "off")
keys = st.from_regex(r"[a-z_]{1,6}", fullmatch=True).filter(lambda key: key not in WORDS)
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3))


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(values)
def test_hydra_reads_a_literal_as_what_it_was(value: Any) -> None:
    (read,) = OverridesParser.create().parse_overrides([f"key={literal(value)}"])
    assert _plain(read.value()) == value


def _plain(value: Any) -> Any:
    """Hydra keeps quotes with quoted strings, also as keys."""
    if isinstance(value, dict):
        return {str(getattr(key, "text", key)): _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list) else getattr(value, "text", value)


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 6), st.integers(1, 5), st.integers(0, 60), st.integers(0, 2**31))
def test_parts_sum_to_the_whole_and_none_is_too_small(parts: int, least: int, more: int, seed: int) -> None:
    found = dimension("units", {"parts": parts, "of": parts * least + more, "least": least})
    assert isinstance(found, Parts)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed))
    (override,) = found.suggest(study.ask())
    sizes = [int(size) for size in override.removeprefix("units=[").removesuffix("]").split(",")]
    assert len(sizes) == parts and sum(sizes) == parts * least + more and min(sizes) >= least


def test_two_parts_can_be_every_size() -> None:
    found = dimension("units", {"parts": 2, "of": 8, "least": 2})
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    seen = {found.suggest(study.ask())[0] for _ in range(200)}
    assert seen == {f"units=[{n},{8 - n}]" for n in range(2, 7)}


def test_ranges_of_whole_numbers_are_whole_and_others_are_not() -> None:
    whole, real = dimension("a", {"low": 1, "high": 9, "step": 4}), dimension("b", {"low": 0.5, "high": 2})
    assert isinstance(whole, Range) and isinstance(real, Range)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(0))
    assert {whole.suggest(study.ask())[0] for _ in range(60)} == {"a=1", "a=5", "a=9"}
    drawn = [float(real.suggest(study.ask())[0].removeprefix("b=")) for _ in range(60)]
    assert 0.5 <= min(drawn) < 0.7 and 1.8 < max(drawn) <= 2


def test_choices_are_values_or_named_sets_that_belong_together() -> None:
    one = dimension("model.hidden", {"choices": [[32], None, "a b"]})
    assert isinstance(one, Choices)
    assert ends(one) == [["model.hidden=[32]"], ["model.hidden=null"], ['model.hidden="a b"']]
    several = dimension("site", {"choices": {"a": {"x.y": 1, "z": "q"}, "b": {"x.y": 2}}})
    assert ends(several) == [["x.y=1", "z=q"], ["x.y=2"]]


FAULTS: list[tuple[dict[str, Any], str]] = [
    ({"low": 2, "high": 1}, "empty"),
    ({"low": 1, "high": 1}, "empty"),
    ({"low": 0, "high": 1, "log": True}, "low above 0"),
    ({"low": 1, "high": 2, "log": "yes"}, "true or false"),
    ({"low": 1, "high": 4, "step": 9}, "at most 3"),
    ({"low": 1, "high": 4, "step": 0.5}, "whole number"),
    ({"low": 1}, "high=None: must be a number"),
    ({"low": 1, "high": 2, "lag": True}, "did you mean log"),
    ({"choices": []}, "two or more"),
    ({"choices": [1]}, "two or more"),
    ({"choices": [1, 1]}, "twice"),
    ({"choices": {"a": 1, "b": {}}}, "mapping of keys"),
    ({"parts": 3, "of": 2}, "exceed of=2"),
    ({"parts": 1, "of": 2}, "2 or more"),
    ({}, "give choices"),
]


@pytest.mark.parametrize(("given_", "says"), FAULTS, ids=[str(given_) for given_, _ in FAULTS])
def test_a_dimension_that_cannot_be_is_refused(given_: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says) as error:
        dimension("key", given_)
    assert str(error.value).startswith("search.space.key") or "search.space.key" in str(error.value)


GOOD = {"name": "x", "space": {"a": {"low": 1, "high": 2}}, "objectives": {"o": {"metric": "mse"}}}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"space": {}}, "search.space: is empty"),
        ({"trials": 0}, "search.trials=0"),
        ({"trials": "many"}, "search.trials"),
        ({"workers": 0}, "search.workers=0"),
        ({"final": {"seeds": 1}}, "search.final.seeds=1"),
        ({"pruning": {"margin": 1.5}}, "search.pruning.margin=1.5"),
        ({"name": "../x"}, "search.name"),
        ({"objectives": {"o": {"goal": "up"}}}, "goal of search.objectives.o"),
        ({"guess": {"by": "weight"}}, "search.guess.by"),
        ({"trails": 4}, "trails"),
    ],
    ids=str,
)
def test_a_search_that_cannot_be_is_refused(change: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        search_from(GOOD | change)


def test_an_objective_is_found_by_its_names_or_as_the_mean_of_its_groups() -> None:
    rows = [
        {"head": "decoder", "region": "all", "group": group, "metric": "mse", "value": value}
        for group, value in (("a", 1.0), ("b", 3.0), ("all", 100.0))
    ]
    assert value_of(rows, ObjectiveConfig()) == 2.0
    assert value_of(rows, ObjectiveConfig(group="b")) == 3.0
    assert value_of(rows, ObjectiveConfig(metric="mae")) is None


BOTH = [ObjectiveConfig(goal="lower"), ObjectiveConfig(goal="higher")]


@pytest.mark.parametrize(
    ("point", "after", "margin", "ends_"),
    [
        ([8.0, 3.0, 0.1], 3, 0.0, True),  # worse than both medians, 2 and 0.5
        ([8.0, 3.0, 0.6], 3, 0.0, False),  # better in one
        ([8.0, 2.0, 0.1], 3, 0.0, False),  # as good in one
        ([8.0, 3.0, 0.1], 4, 0.0, False),  # too few have come as far
        ([16.0, 3.0, 0.1], 1, 0.0, False),  # none has
        ([8.0, 2.1, 0.4], 3, 0.1, False),  # not by a tenth
        ([8.0, 2.3, 0.4], 3, 0.1, True),
    ],
)
def test_a_trial_is_hopeless_if_it_is_worse_in_all(point: list[float], after: int, margin: float, ends_: bool) -> None:
    others = [[[8.0, 1.0, 0.2]], [[8.0, 2.0, 0.5]], [[8.0, 4.0, 0.9]]]
    assert hopeless(point, others, BOTH, PruningConfig(after=after, margin=margin)) is ends_


costs = st.lists(st.lists(st.integers(0, 4), min_size=2, max_size=2), min_size=1, max_size=12)


@given(costs, st.lists(st.integers(0, 4), min_size=2, max_size=2))
def test_the_front_begins_with_what_is_as_good_as_the_reference_everywhere(
    rows: Sequence[Sequence[float]], row: list[int]
) -> None:
    found = by_reference(rows, row)
    above = [any(a > b for a, b in zip(rows[place], row, strict=True)) for place in found]
    assert above == sorted(above) and sorted(found) == pareto(rows)


def test_what_misses_the_reference_least_comes_before_what_is_balanced() -> None:
    rows = [[0.0, 1.0], [0.4, 0.4], [0.9, 0.05], [1.0, 0.0]]
    assert by_reference(rows, [0.93, 0.0]) == [2, 3, 1, 0]
    assert by_reference(rows, [0.0, 0.9]) == [0, 1, 2, 3]
    assert by_reference(rows)[0] == 1


@given(costs)
def test_the_front_is_what_nothing_dominates_and_covers_the_rest(rows: Sequence[Sequence[float]]) -> None:
    found = pareto(rows)
    assert sorted(by_reference(rows)) == found

    def dominates(a: Sequence[float], b: Sequence[float]) -> bool:
        return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))

    for place, row in enumerate(rows):
        assert (place in found) != any(dominates(rows[other], row) for other in found)


def test_a_difference_is_claimed_only_beyond_the_noise_of_seeds() -> None:
    ours, theirs = [1.0, 1.1, 1.2], [2.0, 2.1, 2.3]
    found = difference(ours, theirs, "lower", 1)
    span = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(0.95)
    assert found.value - found.half_width == pytest.approx(span.low)
    assert found.value + found.half_width == pytest.approx(span.high)
    assert found.verdict == "better" and difference(ours, theirs, "higher", 1).verdict == "worse"
    assert difference(ours, [1.0, 1.1, 1.3], "lower", 1).verdict == "not shown"
    assert difference(ours, theirs, "lower", 1000).verdict == "not shown"  # one of a thousand comparisons
    assert difference([1.0, 1.0], [1.0, 1.0], "lower", 1).verdict == "not shown"
