"""The shorthand for partitions of the labels."""

import pytest

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.split import group_name
from gradroute.errors import UserError


def composed(*overrides: str) -> Config:
    return configuration(list(overrides))


def test_two_sets_give_two_regions_and_their_routes() -> None:
    config = composed("split.groups=[[0,2,4,6,8],[1,3,5,7,9]]", "split.units=[4,28]", "split.outside=0.1")
    even, odd = "digits_0_2_4_6_8", "digits_1_3_5_7_9"
    assert {name: group.labels for name, group in config.routing.groups.items()}[odd] == [1, 3, 5, 7, 9]
    assert {n: r.units for n, r in config.routing.regions.items()} == {f"for_{even}": "0:4", f"for_{odd}": "4:32"}
    assert config.routing.routes == {even: {f"for_{odd}": 0.1}, odd: {f"for_{even}": 0.1}}
    assert config.losses.certificates == [f"for_{even}", f"for_{odd}"]
    assert config.losses.l1 == {f"for_{even}": 0.003, f"for_{odd}": 0.003} and config.split.groups is None


def test_what_is_given_of_a_part_stands() -> None:
    split = ["split.groups=[[0,1,2,3,4],[5,6,7,8,9]]", "split.l1=0.01"]
    low, high = "for_digits_0_4", "for_digits_5_9"
    given = [f"routing.regions.{low}.units=[1,3]", f"+routing.routes.digits_5_9.{low}=0.2", f"+losses.l1.{high}=0.5"]
    config, plain = composed(*split, *given), composed(*split)
    assert config.routing.regions[low].units == [1, 3] and config.routing.regions[low].site == "encoder"
    assert config.routing.regions[high] == plain.routing.regions[high]
    assert config.routing.routes == {"digits_0_4": {high: 0.0}, "digits_5_9": {low: 0.2}}
    assert config.losses.l1 == {low: 0.01, high: 0.5} and list(plain.routing.regions) == [low, high]


def test_ten_parts_share_the_encoding() -> None:
    config = composed("split.groups=[[0],[1],[2],[3],[4],[5],[6],[7],[8],[9]]")
    units = [region.units for region in config.routing.regions.values()]
    assert units[0] == "0:3" and units[-1].endswith(":32") and len(units) == 10
    assert config.routing.routes["digits_3"] == {f"for_digits_{d}": 0.0 for d in range(10) if d != 3}


def test_names_are_short() -> None:
    assert [group_name(labels) for labels in ([4, 0, 1, 2, 3], [1, 3], [7], [1, 2])] == [
        "digits_0_4", "digits_1_3", "digits_7", "digits_1_2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["split.groups=[[0,1],[1,2]]"], "label 1 is named twice"),
        (["split.groups=[[0],[]]"], "a set is empty"),
        (["split.outside=0.5"], "do nothing without split.groups"),
        (["split.groups=[[0],[1]]", "split.units=[1]"], "must be 2 numbers above 0"),
        (["split.groups=[[0],[1]]", "split.units=[30,30]"], "at most 32 in total"),
        (["split.groups=[[0],[1]]", "split.site=decoder.act0"], "give split.width"),
        (["split.groups=[[0],[1]]", "+routing.regions.for_digit_0.units=[1]"], "did you mean for_digits_0"),
        (["split.groups=[[0],[1]]", "+losses.l1.for_digits0=1"], "did you mean for_digits_0"),
        (["split.groups=[[0],[1]]", "+routing.routes.digits_0.for_digits_2=1"], "unknown region of split.groups"),
    ],
)
def test_mistakes_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        composed(*overrides)
    assert message in str(error.value) and "\n" not in str(error.value)
