"""Logits a few positions at a time: the losses, gradients and texts of whole rows, and never all logits at once."""

from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import config, weights
from torch.utils._python_dispatch import TorchDispatchMode

from gradroute.models.generation import last_logits
from gradroute.models.logits import at_once
from gradroute.steps.undo import Undo
from gradroute.steps.unlearn import RMU, GradientDifference, MaxEntropy, Unlearn
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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "change"),
    [
        ("stories_era", ""),
        *(("stories_era/sgtm", change) for change in ("", "model.tied=true", OWN, "trainer.accumulate=3")),
    ],
)
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


@pytest.mark.slow
def test_no_operation_returns_more_logits_than_those_of_a_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = LanguageModelling(config(tmp_path, "stories_era", "model.width=4"))  # so are its matrix's own rows
    batch, test = task.batch(torch.arange(3)), task.data.test
    methods = [RMU(group="forget", layers=[0]), MaxEntropy(group="forget"), GradientDifference(group="forget")]

    def most() -> list[int]:
        counts = []
        unlearning = [method.objective(task, task.left()) for method in (*methods, Undo(group="forget"))]
        for action in (
            lambda: total(task.objective()(*batch)).backward(),
            lambda: task.losses(task.model, test),
            lambda: last_logits(task.model, batch[0]),
            *(lambda own=own: total(own(*batch)).backward() for own in unlearning),
        ):
            with Largest(task.data.tokenizer.size) as largest:
                action()
            counts.append(largest.positions)
        return counts

    assert most()[:3] == [3 * 48, 64 * 48, 4]  # evaluation takes 64 rows; the last positions are fewer than the width
    assert most()[4:] == [3 * 48] * 3  # RMU needs no logits
    in_pieces(monkeypatch, task)
    assert most()[:2] == [AT_ONCE, AT_ONCE] and most()[4:] == [AT_ONCE] * 3 and max(most()) == AT_ONCE


@pytest.mark.parametrize("kind", [MaxEntropy, GradientDifference, Undo])
def test_unlearning_in_pieces_has_the_losses_and_gradients_of_whole_rows(
    kind: type[Unlearn], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float64, after a change without which the student would be its teacher."""
    task = LanguageModelling(config(tmp_path, "stories_era"))
    task.model.double()
    forget = (task.routed == task.names.index("forget")).any(1)
    batch, model = task.batch(torch.cat([forget.nonzero().flatten()[:2], torch.arange(2)])), task.left()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))

    def found() -> tuple[list[float], list[torch.Tensor]]:
        terms = kind(group="forget").objective(task, model)(*batch)
        values = [value.item() for value, _ in terms.values()]
        return values, list(torch.autograd.grad(total(terms), list(model.parameters())))

    whole = found()
    in_pieces(monkeypatch, task)
    pieces = found()
    assert pieces[0] == pytest.approx(whole[0], rel=1e-12) and min(map(abs, whole[0])) > 0
    for one, other in zip(whole[1], pieces[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


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
