"""When updates are captured, with a stand-in for CUDA graphs, which replays by calling the update on the held batch."""

from typing import Any

import pytest
import torch

from gradroute.training import capture
from gradroute.training.capture import WARM, Captured
from gradroute.training.history import UpdateTerms
from gradroute.training.objectives import Batch


class Replayed:
    """A graph that was captured: `replay` does what a CUDA graph does, in place."""

    def __init__(self, update: Any, data: list[Batch]) -> None:
        self.update, self.data = update, [tuple(tensor.clone() for tensor in batch) for batch in data]
        self.terms = UpdateTerms((), torch.zeros(1), torch.ones(1, dtype=torch.bool))

    @property
    def graph(self) -> "Replayed":
        return self

    def replay(self) -> None:
        self.terms.numbers.copy_(self.update(self.data).numbers)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what is done, in order; a negative number cannot be captured."""
    done: list[str] = []

    def capturing(update: Any, data: list[Batch], pool: Any) -> Replayed:
        if float(data[0][0][0]) < 0:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        done.append(f"capture {len(data[0][0])}")
        return Replayed(update, data)

    monkeypatch.setattr(capture, "capture", capturing)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: None)
    monkeypatch.setattr(Captured, "_aside", lambda self, data: self.update(data))
    return done


def total(data: Any) -> UpdateTerms:
    return UpdateTerms((), data[0][0].sum()[None], torch.ones(1, dtype=torch.bool))


def test_a_kind_is_captured_after_its_first_updates_and_replayed_on_new_numbers(made: list[str]) -> None:
    lines: list[str] = []
    update = Captured(total, torch.device("cpu"), True, lines.append)
    for number in range(WARM + 3):
        batch = [(torch.full((4,), float(number)),)]
        assert float(update(batch, "a").numbers) == 4 * number
        assert bool(made) == (number >= WARM)
    assert float(update([(torch.ones(2),)], "a").numbers) == 2 and made == [
        "capture 4"
    ]  # another shape is another kind
    assert float(update([(torch.ones(4),)], "b").numbers) == 4 and made == ["capture 4"]
    assert float(update([(torch.ones(4),)], None).numbers) == 4 and not lines


def test_what_cannot_be_captured_is_said_once_and_made_as_it_is(made: list[str]) -> None:
    lines: list[str] = []
    update = Captured(total, torch.device("cpu"), True, lines.append)
    for _ in range(WARM + 3):
        assert float(update([(torch.full((4,), -1.0),)], "a").numbers) == -4
    assert not update.on and not made and len(lines) == 1 and "(operation not permitted" in lines[0]


def test_nothing_is_captured_where_it_is_off(made: list[str]) -> None:
    update = Captured(total, torch.device("cpu"), False, print)
    assert all(float(update([(torch.ones(4),)], "a").numbers) == 4 for _ in range(WARM + 3)) and not made
