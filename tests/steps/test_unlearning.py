"""RMU: its loss against a transcription, the weights that it moves, resuming to the bit, and refused settings."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import refused

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.packing import IGNORED, separated
from gradroute.records.checkpoints import newest
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.running.run import Run
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.steps.misdirection import MisdirectionObjective, direction, outgoing
from gradroute.tasks.language import LanguageModelling
from gradroute.training.fit import Fit

SMALL = [
    "trainer=smoke", "trainer.device=cpu", "model.layers=4", "model.width=16",
    "model.heads=2", "model.hidden=24", "dataset.stories=80",
    "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8", "relearn.documents=[2]",
    "relearn.samples=1", "completions=null",
]  # fmt: skip


def config(folder: Path, *overrides: str, experiment: str = "stories_era/rmu") -> Config:
    return configuration([f"experiment={experiment}", *SMALL, f"output_dir={folder}", *overrides])


def test_the_loss_and_its_gradients_are_those_of_every_token_by_itself(tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path))
    model, frozen = task.left(), task.left()
    with torch.no_grad():  # as if some updates had been made
        for parameter in outgoing(model, [0, 1, 2]).values():
            parameter.add_(0.1 * torch.randn_like(parameter))
    target = direction(16, 7.0, 0)
    assert float(target.norm()) == pytest.approx(7.0) and bool((target >= 0).all())
    batch = task.batch(torch.arange(6))
    trained = outgoing(model, [0, 1, 2])
    objective = MisdirectionObjective(model, frozen, "blocks.2", trained, "forget", 3.0, 0, target)
    terms = objective(*batch)
    torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
    ours = {
        name: torch.clone(parameter.grad)
        for name, parameter in outgoing(model, [0, 1, 2]).items()
        if parameter.grad is not None
    }
    assert len(ours) == 3

    def stream(module: Any, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        positions, mask = separated(documents)
        x: torch.Tensor = module.embed(tokens) + module.position(positions)
        for block in list(module.blocks)[:3]:
            x = block(x, None, mask)
        return x

    tokens, targets, documents, groups, _ = batch
    now, then = stream(model, tokens, documents), stream(frozen, tokens, documents).detach()
    led, kept = [], []
    for i in range(len(tokens)):
        for j in range(tokens.shape[1]):
            if targets[i, j] == IGNORED:
                continue
            if groups[i, j] == 0:
                led.append((now[i, j] - target).square().mean())
            else:
                kept.append((now[i, j] - then[i, j]).square().mean())
    assert led and kept
    loss = torch.stack(led).mean() + 3.0 * torch.stack(kept).mean()
    values = [value.item() for value, _ in terms.values()]
    assert values == pytest.approx([torch.stack(led).mean().item(), torch.stack(kept).mean().item()], rel=1e-5)
    model.zero_grad()
    loss.backward()
    for name, parameter in outgoing(model, [0, 1, 2]).items():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["stories_era/rmu", "stories_era/era_rmu"])
def test_only_the_weights_named_move_and_the_claims_hold(tmp_path: Path, experiment: str) -> None:
    from safetensors.torch import load_file

    given = [] if experiment.endswith("/rmu") else ["model.added=8"]
    (run,) = execute([config(tmp_path, "unlearn.layers=[0,2]", *given, experiment=experiment)])
    assert isinstance(run, Path), run
    found = load_file(run / "model.safetensors")
    after = {name.removeprefix("unlearned."): value for name, value in found.items() if name.startswith("unlearned.")}
    changed = {}
    for name, value in after.items():
        before = found[f"model.{name}"]
        if before.shape != value.shape:  # in layers whose added units were removed
            before = before[:24] if before.shape[0] == 32 else before[:, :24]
        changed[name] = not torch.equal(value, before)
    assert {name for name, moved in changed.items() if moved} == {f"blocks.{i}.mlp.down.weight" for i in (0, 2)}
    assert all(claim.holds for claim in claims_of(run)), [c for c in claims_of(run) if not c.holds]
    heads = {row["head"] for row in read_metrics(run, read_manifest(run)) if row["split"] == "test"}
    assert {"model", "model_unlearned", "model_relearned_2"} <= heads


@pytest.mark.slow
def test_a_run_that_was_interrupted_while_it_unlearns_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(tmp_path / "whole", "trainer.unlearn_steps=6", "checkpoint.minutes=0")
    (whole,) = execute([made])
    assert isinstance(whole, Path)
    kept: list[Path] = []
    real = Run.checkpoint

    def checkpoint(self: Run, fit: object = None) -> None:
        real(self, fit)  # type: ignore[arg-type]
        if "unlearned" in self.task.more() and fit and fit["step"] == 3 and not kept:  # type: ignore[index]
            kept.append(shutil.copytree(self.folder.path, tmp_path / "cut" / self.folder.path.name))

    monkeypatch.setattr(Run, "checkpoint", checkpoint)
    again = config(tmp_path / "again", "trainer.unlearn_steps=6", "checkpoint.minutes=0")
    execute([again])
    monkeypatch.setattr(Run, "checkpoint", real)
    for lock in kept[0].glob(".lock*"):
        os.unlink(lock)
    found = newest(kept[0])
    assert found is not None and "3 updates" in found.position
    (resumed,) = execute([again], folder=kept[0])
    assert isinstance(resumed, Path), resumed
    for name in ("metrics.csv", "model.safetensors", "summary.json"):
        assert (resumed / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.slow
@pytest.mark.parametrize(("retain", "share"), [(0, 0.5), (5, 1.0)])
def test_it_converges(tmp_path: Path, retain: int, share: float) -> None:
    """The minimised loss falls; with nothing to keep, the activations come much closer to the target."""
    made = config(tmp_path, "trainer.unlearn_steps=200", "unlearn.norm=4", "relearn=null", "trainer.lr=0.02",
                  "steps=[train,unlearn]", f"unlearn.retain={retain}")  # fmt: skip
    run = Run(made)
    (training,) = list(run.steps["unlearn"].run(run))
    batch = training.batch(torch.arange(run.task.points))

    def losses() -> list[float]:
        return [value.item() for value, _ in training.objective(*batch).values()]

    led, kept = losses()
    assert kept == 0
    Fit([training], "float32", run.task.device).run()
    led_after, kept_after = losses()
    run.folder.release()
    assert led_after + retain * kept_after < share * led


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["unlearn.site=blocks.9"], "unlearn.site"),
        (["unlearn.site=blocks.*"], "name one"),
        (["unlearn.site=blocks.2.mlp.act"], "is not the residual stream"),
        (["unlearn.layers=[7]"], "layer 7 is out of range"),
        (["unlearn.layers=[]"], "a list of layers"),
        (["unlearn.layers=[1,1]"], "a list with each item once"),
        (["unlearn.group=forgte"], "did you mean forget"),
        (["unlearn.norm=0"], "unlearn.norm=0"),
        (["trainer.unlearn_steps=null"], "trainer.unlearn_steps"),
        (["unlearn=null"], "must contain unlearn if, and only if, unlearn is not null"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    refused(lambda: config(tmp_path, *changes), message)
    assert not list(tmp_path.iterdir())
