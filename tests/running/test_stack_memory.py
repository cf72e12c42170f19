"""A stack that is out of memory goes on in halves, from its last checkpoints, and makes the runs that it would have."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_images import small

from gradroute.config.identity import one_by_seed
from gradroute.records.run_reader import read_manifest
from gradroute.running import runner
from gradroute.running.runner import execute
from gradroute.training import memory
from gradroute.training.stack import Stack


def stacked(folder: Path, *more: str) -> list[Any]:
    settings = ["steps=[train,evaluate]", "trainer.train_limit=96", "model.hidden=[8]", f"output_dir={folder}", *more]
    return execute(one_by_seed(small(*settings)))


@pytest.mark.parametrize("updates", [0, 4], ids=["at once", "after checkpoints"])
def test_out_of_memory_halves_a_stack_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], updates: int
) -> None:
    """Three runs of a machine whose memory holds two, which shows after some updates."""
    whole, made = Stack.gradients, [0]

    def gradients(stack: Stack, data: Any) -> Any:
        made[0] += 1
        if len(stack.objectives) > 2 and made[0] > updates:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(stack, data)

    monkeypatch.setattr(Stack, "gradients", gradients)
    runs = stacked(tmp_path, "seeds=3", "stack=3", "checkpoint.minutes=0")
    assert [read_manifest(run)["state"] for run in runs] == ["finished"] * 3, runs
    assert [read_manifest(run)["seed"] for run in runs] == [0, 1, 2]
    assert "out of memory: goes on with stacks of 2 runs instead of 3" in capsys.readouterr().out
    begun = "resumes from" if updates else "starts from the beginning"
    assert all(begun in (run / "log.txt").read_text() for run in runs)


def test_a_run_alone_that_is_out_of_memory_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gradients(stack: Stack, data: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Stack, "gradients", gradients)
    monkeypatch.setattr("gradroute.training.gradients.Single.gradients", gradients)
    outcomes = stacked(tmp_path, "seeds=2", "stack=2")
    assert all("out of memory: lower trainer.batch_size" in str(outcome) for outcome in outcomes)


def test_auto_takes_what_the_free_memory_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert memory.runs_that_fit(2**40, torch.device("cpu"))[0] == 1
    monkeypatch.setattr(memory, "machine_memory", lambda device: 10 * 2**20)
    assert memory.runs_that_fit(2**20, torch.device("cpu")) == (7, 10 * 2**20)
    monkeypatch.setattr("gradroute.training.stacking.AUTO", {"cpu": 32})
    sizes: list[int] = []
    monkeypatch.setattr(runner, "make_steps", lambda runs: sizes.append(len(runs)))
    monkeypatch.setattr(memory, "runs_that_fit", lambda each, device: (2, 2**30))
    stacked(tmp_path, "seeds=5", "stack=auto")
    assert sizes == [2, 2, 1]
