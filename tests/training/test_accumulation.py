"""A batch in parts: the same updates as of the whole, for all losses, routes and the ledger, also after a break."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from small_language import config, goes_on_to_the_bit, weights

from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.running.runner import execute
from gradroute.steps.finetune import FineTune
from gradroute.steps.tuning import Tuning
from gradroute.steps.unlearn import RMU
from gradroute.tasks.base import create
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.probe import Probe
from gradroute.training.gradients import total
from gradroute.training.objectives import Term, in_parts

METHODS = pytest.mark.parametrize("experiment", ["stories_era", "stories_era/sgtm"])


@pytest.mark.slow
@METHODS
@pytest.mark.parametrize("parts", [2, 3, 7])
def test_a_batch_in_parts_makes_the_same_updates(tmp_path: Path, experiment: str, parts: int) -> None:
    """Parts of unequal rows, whose rows have unequal numbers of predictions and of the groups' tokens."""
    changes = ["+losses.groups.forget=0.5"] if experiment == "stories_era" else []
    own = config(tmp_path, experiment, "routing.labelled_fraction=0.5", *changes)
    split = config(tmp_path, experiment, "routing.labelled_fraction=0.5", *changes, f"trainer.accumulate={parts}")
    whole, accumulated = (weights(c, LanguageModelling.objective) for c in (own, split))
    assert len(whole[0]) > 4 and whole[0] == pytest.approx(accumulated[0], rel=1e-6)
    for one, other in zip(whole[1], accumulated[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # of updates of 2e-3


def test_the_mean_of_the_parts_losses_would_be_another_update(tmp_path: Path) -> None:
    found = []
    for parts, weight in ((1, 1.0), (3, 1 / 3)):
        task = LanguageModelling(config(tmp_path, "stories_era"))
        objective = task.objective()
        for part in in_parts(task.batch(torch.arange(7)), parts):
            total(objective(*part)).mul(weight).backward()
        found.append(torch.cat([p.grad.flatten() for p in task.model.parameters() if p.grad is not None]))
    assert float((found[0] - found[1]).abs().max()) > 1e-4


def test_unlearning_in_parts_makes_the_same_updates(tmp_path: Path) -> None:
    def made(task: LanguageModelling) -> Any:
        return RMU(group="forget", site="blocks.0", layers=[0, 1]).objective(task, task.model)

    own, split = (config(tmp_path, "stories_era", f"trainer.accumulate={n}") for n in (1, 3))
    for one, other in zip(weights(own, made)[1], weights(split, made)[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)


def tuned(task: LanguageModelling) -> Probe:
    """The training of `finetune` and `relearn`, on three documents."""
    run: Any = SimpleNamespace(task=task, config=task.config)
    return Tuning(run, task.model, FineTune(group="retain", documents=[3]), 3, 0, "model_finetuned").probe


def unlearned(task: LanguageModelling) -> Probe:
    objective = RMU(group="forget", site="blocks.0", layers=[0, 1]).objective(task, task.model)
    return Probe("unlearn", objective, task.batch)


PROBES: dict[str, Callable[[LanguageModelling], Probe]] = {
    "train": lambda task: Probe("train", task.objective(), task.batch), "finetune": tuned, "unlearn": unlearned,
}  # fmt: skip


@pytest.mark.parametrize("step", PROBES)
def test_gradients_of_parts_add_up_to_those_of_the_whole_batch(step: str, tmp_path: Path) -> None:
    """In float64, for every step that trains: with routes, penalties and weights, or without."""
    task = LanguageModelling(config(tmp_path, "stories_era", "+losses.groups.forget=0.5", "dataset.length=24"))
    task.model.double()
    probe = PROBES[step](task)
    objective, found = probe.objective, list[torch.Tensor]()
    batch = probe.batch(torch.arange(min(7, probe.points or 7)))
    assert len(batch[0]) > 4
    for number in (1, 2, 5):
        objective.zero_grad()
        for part in objective.parts(batch, number):
            total(objective(*part)).backward()
        found.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    for gradients in found[1:]:
        torch.testing.assert_close(gradients, found[0], rtol=1e-9, atol=1e-12 * float(found[0].abs().max()))


IMAGES = ["trainer=smoke", "losses.correlation=0", "trainer.train_limit=96", "trainer.test_limit=32"]


@pytest.mark.parametrize("labelled", [1.0, 0.5])
@pytest.mark.parametrize("parts", [2, 7])
@pytest.mark.parametrize("experiment", ["mnist_split", "class_split"])
def test_a_batch_of_images_in_parts_has_the_same_gradient(experiment: str, parts: int, labelled: float) -> None:
    task = create(configuration([f"experiment={experiment}", *IMAGES, f"routing.labelled_fraction={labelled}"]))
    objective, found = task.objective().double(), []
    batch = task.batch(torch.arange(45))
    batch = (batch[0].double(), *batch[1:])
    for number in (1, parts):
        values: dict[Term, float] = {}
        for part in objective.parts(batch, number):
            terms = objective(*part)
            total(terms).backward()
            for term, (value, _) in terms.items():
                values[term] = values.get(term, 0.0) + value.item()
        found.append((values, {name: p.grad for name, p in objective.named_parameters()}))
        objective.zero_grad()
    assert found[1][0] == pytest.approx(found[0][0], rel=1e-6) and len(found[0][0]) > 5
    for name, gradient in found[0][1].items():
        assert gradient is not None and bool(gradient.any())
        torch.testing.assert_close(found[1][1][name], gradient, rtol=1e-6, atol=1e-9)


@pytest.mark.slow
@METHODS
def test_the_ledger_and_the_metrics_are_those_of_whole_batches(tmp_path: Path, experiment: str) -> None:
    found = []
    for parts in (1, 3):
        (run,) = execute([config(tmp_path / str(parts), experiment, f"trainer.accumulate={parts}")])
        assert isinstance(run, Path), run
        found.append((read_ledger(run), read_metrics(run)))
    for one, other in zip(found[0][0], found[1][0], strict=True):
        near = {k: pytest.approx(v, rel=2e-3, abs=1e-6) if isinstance(v, float) else v for k, v in one.items()}
        assert other == near
    for row, its in zip(found[0][1], found[1][1], strict=True):
        assert its["value"] == pytest.approx(row["value"], rel=1e-3), row


@pytest.mark.slow
def test_a_run_in_parts_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on_to_the_bit(tmp_path, monkeypatch, "trainer.accumulate=3")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["experiment=stories_era", "trainer=smoke", "trainer.accumulate=17"],
         "trainer.accumulate=17: must be at most trainer.batch_size=16"),
        (["trainer.accumulate=2"], "trainer.accumulate=2: must be 1: losses.correlation needs the whole batch at once"),
        (["experiment=class_split", "model.norm=batch", "losses.correlation=0", "trainer.accumulate=2"],
         "trainer.accumulate=2: must be 1: batch norm (model.norm) needs the whole batch at once"),
        (["trainer.accumulate=0"], "trainer.accumulate=0: must be from 1 to 1000000"),
    ],
)  # fmt: skip
def test_what_cannot_be_taken_in_parts_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        configuration(changes)
    assert message in str(error.value) and "\n" not in str(error.value)
