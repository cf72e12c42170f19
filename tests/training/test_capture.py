"""When updates are captured, with a stand-in for CUDA graphs, which replays by calling the update on the held batch."""

from typing import Any

import pytest
import torch

from gradroute.errors import UserError
from gradroute.routing.memberships import checked_later, read
from gradroute.training import capture
from gradroute.training.capture import WARM, Captured
from gradroute.training.compiling import Attempt
from gradroute.training.determinism import affordable, exactly
from gradroute.training.distributed import joining
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


def test_deterministic_algorithms_are_taken_where_they_are_cheap_and_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    now, on = [0.0], torch.are_deterministic_algorithms_enabled
    monkeypatch.setattr("time.perf_counter", lambda: now[0])

    def work(cost: float) -> None:
        now[0] += cost if on() else 1.0

    assert affordable(lambda: work(1.05), lambda: None) == (
        True, "deterministic algorithms take 1.05 of the time without them",
    )  # fmt: skip
    assert affordable(lambda: work(1.2), lambda: None)[0] is False

    def missing() -> None:
        if on():
            raise RuntimeError("cumsum_cuda does not have a deterministic implementation\nmore")

    assert affordable(missing, lambda: None) == (
        False, "torch has no deterministic algorithm for it (cumsum_cuda does not have a deterministic implementation)",
    )  # fmt: skip
    with exactly(True):
        assert on()
    assert not on()


def test_memberships_of_a_device_are_checked_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU at once; elsewhere by `check`: the meta device, which can tell nothing, stands for a GPU's passes."""
    with checked_later(torch.device("cpu")), pytest.raises(UserError, match="out of range"):
        read(torch.tensor([0, 2]), ["a", "b"])
    with checked_later(torch.device("meta")) as later:
        read(torch.zeros(3, dtype=torch.int64, device="meta"), ["a", "b"])
        assert later.right.startswith("whole numbers of the 2 groups")
    later.wrong = torch.tensor(True)
    with pytest.raises(UserError, match="membership has values out of range: give whole numbers of the 2 groups"):
        later.check()


def test_a_compiler_that_fails_is_given_up_with_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(Exception):
        __module__ = "torch._dynamo.exc"

    def compile_(function: Any, dynamic: bool) -> Any:
        def program(*inputs: torch.Tensor) -> torch.Tensor:
            raise Broken("no compiler here\nmore")

        return program

    monkeypatch.setattr(torch, "compile", compile_)
    lines: list[str] = []
    program = Attempt(lambda x: x + 1, lines.append)
    assert float(program(torch.ones(()))) == float(program(torch.ones(()))) == 2
    assert lines == ["trainer.compile=auto: trains uncompiled, since torch.compile fails here (no compiler here)"]


def test_processes_that_share_a_gpu_are_told_so() -> None:
    assert joining(4, 1).startswith("torchrun: 4 processes share 1 GPU and exchange gradients through the CPU")
    assert joining(2, 2) == joining(2, 0) and "does not answer for 30 minutes" in joining(2, 0)
