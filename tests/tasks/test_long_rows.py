"""Logits a few positions at a time: the losses, gradients and texts of whole rows, and never all logits at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import config, weights
from torch.utils._python_dispatch import TorchDispatchMode

from gradroute.models.generation import last_logits
from gradroute.models.logits import at_once
from gradroute.steps.unlearn import RMU
from gradroute.tasks.language import LanguageModelling
from gradroute.training.gradients import total
from gradroute.training.measures import CROSS_ENTROPY

AT_ONCE = 5  # positions, of rows of 48
OWN = "losses.error={_target_: gradroute.training.measures.CrossEntropy}"


def in_pieces(monkeypatch: pytest.MonkeyPatch, task: LanguageModelling) -> None:
    """From now on, let logits of more than AT_ONCE positions be too many."""
    limit = AT_ONCE * task.data.tokenizer.size
    monkeypatch.setattr("gradroute.models.logits.LOGITS", limit)
    monkeypatch.setattr("gradroute.tasks.language_losses.LOGITS", limit)
    assert at_once(task.model, task.data.length) == AT_ONCE


class Largest(TorchDispatchMode):
    """Notes the most positions for which any operation returns a number for every word of the vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary, self.positions = vocabulary, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, list | tuple) else [found]:
            if isinstance(tensor, torch.Tensor) and tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary:
                self.positions = max(self.positions, tensor.numel() // self.vocabulary)
        return found


@pytest.mark.parametrize("change", ["", "model.tied=true", OWN, "trainer.accumulate=3"])
@pytest.mark.parametrize("experiment", ["stories_era", "stories_era/sgtm"])
def test_a_training_makes_the_updates_of_whole_rows(
    experiment: str, change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With routes of activations and penalties, and with routes of parameters; in float64."""
    own = config(tmp_path, experiment, "routing.labelled_fraction=0.5", *([change] if change else []))
    whole = weights(own, LanguageModelling.objective)
    in_pieces(monkeypatch, LanguageModelling(own))
    pieces = weights(own, LanguageModelling.objective)
    assert pieces[0] == pytest.approx(whole[0], rel=1e-9) and len(whole[0]) > 4
    for one, other in zip(whole[1], pieces[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-8)  # of updates of 2e-3


def test_no_operation_returns_more_logits_than_those_of_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = LanguageModelling(config(tmp_path, "stories_era", "model.width=4"))  # so are its matrix's own rows
    batch, test = task.batch(torch.arange(3)), task.data.test
    rmu = RMU(group="forget", layers=[0]).objective(task, task.left())

    def most() -> list[int]:
        counts = []
        for action in (
            lambda: total(task.objective()(*batch)).backward(),
            lambda: task.losses(task.model, test),
            lambda: last_logits(task.model, batch[0]),
            lambda: total(rmu(*batch)).backward(),
        ):
            with Largest(task.data.tokenizer.size) as largest:
                action()
            counts.append(largest.positions)
        return counts

    assert most()[:3] == [3 * 48, 64 * 48, 3 * 48]  # evaluation takes 64 rows
    in_pieces(monkeypatch, task)
    assert most()[:2] == [AT_ONCE, AT_ONCE] and max(most()) == AT_ONCE


def test_evaluation_and_generation_give_what_whole_rows_give(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = LanguageModelling(config(tmp_path, "stories_era"))
    tokens, model = task.batch(torch.arange(3))[0], task.model

    def found() -> list[torch.Tensor]:
        sites = task.router.regions["added"].sites
        logits = last_logits(model, tokens).detach()
        return [task.losses(model, task.data.test)[CROSS_ENTROPY.name], logits, *task.activations(sites).values()]

    whole = found()
    in_pieces(monkeypatch, task)
    for one, other in zip(whole, found(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)
