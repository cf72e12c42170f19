"""A batch cut by the weights of its rows: the pieces, and the gradients and freezing of the whole batch."""

from pathlib import Path

import pytest
import torch
from small_language import config, weights

from gradroute.routing.cutting import cut
from gradroute.tasks.language import LanguageModelling
from gradroute.training import gradients

A, B, NONE = [True, False, False], [False, True, False], [False, False, True]


def test_rows_of_one_kind_make_a_piece_and_mixed_rows_another() -> None:
    found = cut(torch.tensor([B, A, [True, True, False], NONE, A]), [0, 1, 0])
    assert found is not None and found.kinds == [0, 1, None] and found.ends == [3, 4, 5]
    assert found.order.tolist() == [1, 3, 4, 0, 2]


def test_pieces_are_cut_further_and_nothing_is_gained_where_all_rows_are_mixed() -> None:
    found = cut(torch.tensor([A, A, A, B]), [0, 1, 1], parts=2)
    assert found is not None and (found.ends, found.kinds) == ([2, 3, 4], [0, 0, 1])
    assert cut(torch.tensor([[True, True, False]] * 2), [0, 1, 1]) is None


@pytest.mark.parametrize("packing", ["mixed", "by_group"])
def test_updates_of_cut_batches_are_those_of_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packing: str
) -> None:
    """Of SGTM in float64: three sets of weights, rows of one group each or of several."""
    own = config(tmp_path, "stories_era/sgtm", "routing.labelled_fraction=0.5", f"task.packing={packing}")
    fast = weights(own, LanguageModelling.objective)
    monkeypatch.setattr(gradients, "cut", lambda *given: None)
    slow = weights(own, LanguageModelling.objective)
    assert len(slow[0]) > 4 and fast[0] == pytest.approx(slow[0], rel=1e-12)
    for one, other in zip(fast[1], slow[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
