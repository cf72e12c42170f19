"""What a language model's run needs: the estimate that refuses it, and the parts in which large work is taken."""

from pathlib import Path

import pytest
import torch
from small_language import config
from torch import nn

from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.search.guess import _shares
from gradroute.steps.tuning import Best
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_memory import copies, rows_stored
from gradroute.training.memory import FLOAT, parameter_numbers

PENALTY = "losses.penalties=[{_target_: gradroute.training.penalties.Correlation, weight: 0.1}]"


@pytest.mark.parametrize(
    ("experiment", "expected"),
    [
        ("steering_scalar", 4),
        ("stories_era/base", 6),  # the trained model; one that relearns, and its best weights
        ("stories_era", 7),  # and the fine-tuned one
        ("stories_era/rmu", 7),  # or the unlearned one
    ],
)
def test_copies_of_the_parameters_are_those_of_the_step_with_most(experiment: str, expected: int) -> None:
    assert copies(configuration([f"experiment={experiment}"])) == expected


GIB = r"\d+\.\d GiB are needed and the machine has \d+\.\d"


@pytest.mark.parametrize(
    ("given", "rows", "message"),
    [
        (["dataset.length=256"], 1, f"^dataset.length=256: {GIB}; lower dataset.length$"),
        ([PENALTY], 7, f"^trainer.batch_size=7: {GIB}; lower trainer.batch_size$"),
        (["trainer.accumulate=2"], 4, f"^trainer.batch_size=7: {GIB}; lower trainer.batch_size, or raise trainer.acc"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_setting_to_lower(
    given: list[str], rows: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One row, a whole batch that a penalty needs, and the parts that were asked for."""
    task = LanguageModelling(config(tmp_path, "stories_era", *given))
    needed = 7 * FLOAT * parameter_numbers(task.model) + rows * task.row_bytes
    if rows == 1:
        monkeypatch.setattr("gradroute.training.memory.PART", task.row_bytes)
    limit = [needed]
    monkeypatch.setattr("gradroute.training.memory.machine_memory", lambda device: limit[0])
    LanguageModelling(config(tmp_path, "stories_era", *given))
    limit[0] -= 1
    with pytest.raises(UserError, match=message):
        LanguageModelling(config(tmp_path, "stories_era", *given))


def test_stored_activations_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = LanguageModelling(config(tmp_path, "stories_era"))
    sites = task.router.regions["original"].sites
    assert rows_stored(task.router, sites, 48) == 2048
    monkeypatch.setattr("gradroute.tasks.language_memory.STORED", 3 * FLOAT * 48 * 2 * (24 + 8))
    assert [len(found) for found in task.activations(sites).values()] == [3, 3]


@pytest.mark.parametrize("by", ["activation", "gradient"])
def test_a_guess_from_parts_is_that_of_all_rows(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = LanguageModelling(config(tmp_path, "stories_era"))
    whole = _shares(task, 1, by, "original")
    monkeypatch.setattr("gradroute.training.memory.PART", 3 * task.row_bytes)
    torch.testing.assert_close(_shares(task, 1, by, "original"), whole, rtol=1e-4, atol=1e-7)


def test_the_best_weights_are_kept_once_and_restored() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight  # tied
    model = nn.Sequential(first, second)
    best = Best(model)
    best.see(0, 2.0)
    kept = best.weights["0.weight"]
    with torch.no_grad():
        first.weight.fill_(1.0)
    best.see(1, 1.0)
    with torch.no_grad():
        first.weight.fill_(2.0)
    best.see(2, 3.0)
    assert best.weights["0.weight"] is kept and "1.weight" not in best.weights and best.step == 1
    best.restore()
    assert bool(second.weight.eq(1).all())
