"""Groups by label, column and predicate; labels that are missing or mistaken."""

from pathlib import Path
from typing import Any

import pytest
import torch

from gradroute.config.schema import GroupConfig, NoiseConfig, RoutingConfig
from gradroute.data.groups import Groups, Part, assign
from gradroute.errors import UserError

LABELS = torch.arange(4000) % 4
PART = Part(torch.linspace(-1, 1, 4000)[:, None], LABELS, {"writer": [f"w{i % 5}" for i in range(4000)]})
EVEN_ODD = {"even": GroupConfig([0, 2]), "odd": GroupConfig([1, 3])}


def groups_of(groups: dict[str, GroupConfig], unassigned: str = "error", seed: int = 0, **options: Any) -> Groups:
    return assign(RoutingConfig(groups=groups, unassigned=unassigned, **options), PART, PART, seed)


def test_labels_columns_and_predicates_make_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert groups_of(EVEN_ODD).train[:4].tolist() == [0, 1, 0, 1]
    rules = {"few": GroupConfig(column="writer", values=["w1", "w3"])}
    found = groups_of(rules, "unrouted")
    assert found.names == ["few", "unassigned"] and found.test[:6].tolist() == [1, 0, 1, 0, 1, 1]
    (tmp_path / "my_rules.py").write_text("def bright(images, labels):\n    return images.mean(1) > 0\n")
    monkeypatch.chdir(tmp_path)
    found = groups_of({"bright": GroupConfig(predicate="my_rules:bright")}, "unrouted")
    assert found.train.tolist() == [1] * 2000 + [0] * 2000


def test_everything_is_labelled_by_default_and_truth_stays() -> None:
    found = groups_of(EVEN_ODD)
    assert torch.equal(found.routed, found.train)
    noisy = groups_of(EVEN_ODD, labelled_fraction=0.0)
    assert bool((noisy.routed == -1).all()) and torch.equal(noisy.train, found.train)


def test_labels_go_missing_at_the_rate_asked_and_by_seed() -> None:
    found = groups_of(EVEN_ODD, labelled_fraction=0.3)
    for group in (0, 1):
        share = float((found.routed[found.train == group] == group).float().mean())
        assert share == pytest.approx(0.3, abs=0.04)  # four standard errors of 2000 draws
    assert torch.equal(found.routed, groups_of(EVEN_ODD, labelled_fraction=0.3).routed)
    assert not torch.equal(found.routed, groups_of(EVEN_ODD, seed=1, labelled_fraction=0.3).routed)


def test_mistaken_labels_come_at_the_rates_asked() -> None:
    noise = {"even": NoiseConfig(false_positive=0.2, false_negative=0.1)}
    found = groups_of(EVEN_ODD, label_noise=noise)
    even, odd = found.routed[found.train == 0], found.routed[found.train == 1]
    assert float((odd == 0).float().mean()) == pytest.approx(0.2, abs=0.04)
    assert float((even == -1).float().mean()) == pytest.approx(0.1, abs=0.03)
    assert bool(((odd == 0) | (odd == 1)).all()) and bool(((even == 0) | (even == -1)).all())


MISTAKES: list[tuple[dict[str, GroupConfig], str]] = [
    ({"odd": GroupConfig([1, 11])}, "unknown label in routing.groups.odd.labels: '11'"),
    ({"odd": GroupConfig([1, 3])}, "points with labels [0, 2] are in no group"),
    ({"w": GroupConfig(column="writr", values=["w1"])}, "did you mean writer?"),
    ({"w": GroupConfig(column="writer", values=["w9"])}, "routing.groups.w: has no training point"),
    ({**EVEN_ODD, "w": GroupConfig(column="writer", values=["w1"])}, "800 points are in 'odd' and 'w'"),
    ({"p": GroupConfig(predicate="nowhere:f")}, "predicate=nowhere:f: cannot be imported"),
    ({"p": GroupConfig(predicate="math:pi")}, "is a float, not a function"),
    ({"p": GroupConfig(predicate="torch:maximum")}, "predicate=torch:maximum: returned torch.float32"),
]


@pytest.mark.parametrize(("groups", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_refused(groups: dict[str, GroupConfig], message: str) -> None:
    with pytest.raises(UserError) as error:
        groups_of(groups)
    assert message in str(error.value) and "\n" not in str(error.value)
