"""The terms of an epoch's updates, and their means."""

import pytest
import torch

from gradroute.training.history import EpochTerms, UpdateTerms
from gradroute.training.objectives import Term

RARE, COMMON, PENALTY = (
    Term("model", "rare", "all", "mse"), Term("model", "common", "all", "mse"), Term("penalty", "all", "added", "l1"),
)  # fmt: skip


def test_a_mean_leaves_out_updates_without_a_point_of_the_group() -> None:
    """A batch of two documents rarely has one of a small group; a penalty of 0 is a value."""
    epoch = EpochTerms((RARE, COMMON, PENALTY), 3, 1, torch.device("cpu"))
    for numbers in ((0.0, 1.0, 2.0), (6.0, 3.0, 0.0), (4.0, 5.0, 0.0)):
        epoch.add(UpdateTerms(epoch.terms, torch.tensor(numbers)[:, None], torch.tensor([True])))
    (means,) = epoch.means()
    assert means == {RARE: 5.0, COMMON: 3.0, PENALTY: pytest.approx(2 / 3)}


def test_a_group_that_never_occurs_has_a_mean_of_zero() -> None:
    epoch = EpochTerms((RARE,), 1, 2, torch.device("cpu"))
    epoch.add(UpdateTerms((RARE,), torch.tensor([[0.0, 7.0]]), torch.tensor([True, True])))
    assert epoch.means() == [{RARE: 0.0}, {RARE: 7.0}]
