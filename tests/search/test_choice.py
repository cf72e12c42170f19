"""Which of a pilot's candidates are tried, and which one is chosen."""

from dataclasses import replace

import pytest

from gradroute.search import choice
from gradroute.search.found import Evidence

# conflict, numbers per data point, what it holds, and its score if it is tried
ROWS = {"wide": (0.4, 256, 1.0, 0.03), "middle": (0.3, 64, 0.9, 0.05), "neck": (0.1, 16, 0.6, 0.0),
        "side": (0.2, 4, 0.2, 0.01)}  # fmt: skip


def evidence(**scores: float) -> list[Evidence]:
    return [
        Evidence(name, [name], -1, None, conflict, None, None, [], [], [], held=held, numbers=numbers,
                 score=scores.get(name, score))
        for name, (conflict, numbers, held, score) in ROWS.items()
    ]  # fmt: skip


def names(places: list[int]) -> list[str]:
    return [list(ROWS)[place] for place in places]


def test_the_bottleneck_is_narrow_and_holds_much() -> None:
    assert list(ROWS)[choice.bottleneck(evidence())] == "neck"  # "side" is narrower, and holds little
    several = [replace(one, only_way=one.name in ("wide", "middle")) for one in evidence()]
    assert list(ROWS)[choice.bottleneck(several)] == "middle"  # what it keeps apart does not pass by
    nothing = [replace(one, held=None) for one in evidence()]
    assert list(ROWS)[choice.bottleneck(nothing)] == "side"


def test_those_with_the_most_conflict_and_the_bottleneck_are_tried() -> None:
    assert names(choice.tried(evidence(), 1)) == ["neck"]
    assert names(choice.tried(evidence(), 3)) == ["wide", "middle", "neck"]
    assert names(choice.tried(evidence(), 4)) == ["wide", "middle", "side", "neck"]


@pytest.mark.parametrize(
    ("scores", "expected"), [({}, "neck"), ({"wide": 0.3}, "wide"), ({"wide": 0.3, "neck": 0.4}, "neck")]
)
def test_a_clear_score_decides_and_else_the_bottleneck(scores: dict[str, float], expected: str) -> None:
    found = evidence(**scores)
    assert names([choice.chosen(found, choice.tried(found, 3))]) == [expected]
