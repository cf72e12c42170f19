"""The terms of an epoch's updates, and their means."""

import pytest
import torch

from gradroute.training.history import EpochTerms, UpdateTerms
from gradroute.training.objectives import Term

RARE, COMMON, PENALTY = (
    Term("model", "rare", "all", "mse"), Term("model", "common", "all", "mse"), Term("penalty", "all", "added", "l1"),
)  # fmt: skip


def test_a_mean_leaves_out_updates_without_a_point_of_the_group() -> None:
    """A batch of two documents rarely has one of a small group; a loss of 0 on a point is a value."""
    epoch = EpochTerms((RARE, COMMON, PENALTY), 3, 1, torch.device("cpu"))
    for numbers, absent in (((0.0, 1.0, 2.0), {"rare"}), ((0.0, 3.0, 0.0), set()), ((4.0, 5.0, 0.0), set())):
        epoch.add(UpdateTerms(epoch.terms, torch.tensor(numbers)[:, None], torch.tensor([True])), [absent])
    assert epoch.means() == [{RARE: 2.0, COMMON: 3.0, PENALTY: pytest.approx(2 / 3)}]


def test_a_group_that_a_task_never_has_has_no_mean() -> None:
    epoch = EpochTerms((RARE, COMMON), 2, 2, torch.device("cpu"))
    for value in (7.0, 9.0):
        numbers = torch.tensor([[0.0, value], [1.0, 2.0]])
        epoch.add(UpdateTerms((RARE, COMMON), numbers, torch.tensor([True, True])), [{"rare"}, set()])
    assert epoch.means() == [{COMMON: 1.0}, {RARE: 8.0, COMMON: 2.0}]


def test_a_checkpoint_keeps_which_groups_an_update_had() -> None:
    epoch, device = EpochTerms((RARE, COMMON), 3, 2, torch.device("cpu")), torch.device("cpu")
    absents: list[list[set[str]]] = [[{"rare"}, set()], [{"rare"}, {"rare"}], [set(), {"common"}]]
    for absent in absents:
        epoch.add(UpdateTerms((RARE, COMMON), torch.rand(2, 2), torch.tensor([True, True])), absent)
    again = EpochTerms((COMMON, RARE), 3, 2, device)
    again.load([epoch.state(task) for task in range(2)])
    assert [again.by_task(update) for update in range(3)] == [epoch.by_task(update) for update in range(3)]
    assert again.means() == epoch.means()
