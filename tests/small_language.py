"""Language models of a few thousand weights, for tests that compare their training after every update."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import goes_on_alike

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.audits import AUDITED, INTACT, words
from gradroute.running.audits import Request, audited
from gradroute.running.runner import execute
from gradroute.tasks.language import LanguageModelling
from gradroute.training.fit import Fit
from gradroute.training.objectives import Batch
from gradroute.training.training import Training

SMALL = [
    "trainer=smoke", "trainer.device=cpu", "model.layers=2", "model.width=16",
    "model.heads=2", "model.hidden=24", "model.expand=[0,1]",
    "model.added=8", "dataset.stories=60", "dataset.test_stories=40", "dataset.length=48",
    "trainer.batch_size=7", "relearn.documents=[2]", "relearn.samples=1", "relearn.every=1", "completions=null",
]  # fmt: skip


def config(folder: Path, experiment: str, *overrides: str) -> Config:
    given = [f"experiment={experiment}", *SMALL, "finetune.documents=[4]", f"output_dir={folder}", *overrides]
    return configuration(given)


def weights(own: Config, made: Callable[[LanguageModelling], Any]) -> tuple[list[float], list[torch.Tensor]]:
    """Return the losses and the parameters after every update of a float64 epoch of the objective `made(task)`."""
    task = LanguageModelling(own)
    task.model.double()
    objective = made(task)
    order, known = torch.Generator().manual_seed(0), task.known

    def before_update(step: int, batch: Batch, rows: torch.Tensor) -> None:
        objective.there = known.there[rows] if known and task.parameter_router else None

    training = Training(
        "train", objective, task.batch, task.points, own.trainer, order,
        parameter_router=task.parameter_router, compiled=own.trainer.compile, before_update=before_update,
    )  # fmt: skip
    fit, found, losses = Fit([training], "float32", task.device), list[torch.Tensor](), list[float]()

    def after_update() -> None:
        found.append(torch.cat([p.detach().flatten() for p in objective.parameters()]))
        losses.append(sum(fit._seen.by_task(len(found) - 1)[0].values()))

    fit.run(after_update)
    return losses, found


def goes_on_to_the_bit(folder: Path, monkeypatch: pytest.MonkeyPatch, *changes: str) -> None:
    """Check that a run resumed from its third checkpoint writes the same bytes as one that was never interrupted."""
    changes = ("checkpoint.minutes=0", "steps=[train,ablate,finetune,relearn,evaluate]", *changes)
    whole, cut = (config(folder / name, "stories_era", *changes) for name in ("whole", "cut"))
    goes_on_alike(monkeypatch, whole, cut, 3, ("metrics.csv", "ledger.csv", "model.safetensors", "summary.json"))


def audit_of(run: Path, group: str) -> dict[str, str | None]:
    """Audit a finished run by few attacks and without anchors of their own training; return the verdicts."""
    sizes = {"examples": [2], "samples": 2, "updates": 1, "points": 20, "bits": [4], "noise": [], "calibration": 0,
             "probe_updates": 0, "anchors": [INTACT]}  # fmt: skip
    folder, found = audited(run, Request([run], {"group": group, **sizes}))
    assert folder != run and found["anchors"].keys() == {AUDITED, INTACT}
    return words(found)


def refused(make: Callable[[], Config], message: str) -> None:
    """Check that a configuration, or its run, is refused with a one-line message."""
    with pytest.raises(UserError, match=message) as raised:
        (outcome,) = execute([make()])
        assert isinstance(outcome, UserError), outcome
        raise outcome
    assert len(str(raised.value).splitlines()) == 1


def unreachable(command: Callable[..., Any], place: Path, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """Run a command that needs the hub, offline with an empty cache; check that no files are left; return its error."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(place / "hub"))
    cwd = place / "here"
    cwd.mkdir()
    result = command("gradroute-run", *arguments, cwd=cwd)
    assert result.returncode == 2 and not list(cwd.iterdir())
    assert len(result.stderr.splitlines()) == 1
    return str(result.stderr)
