"""DP-SGD against its definition, one row at a time: clip, sum, add noise, divide by the expected batch."""

from pathlib import Path

import pytest
import torch
from small_language import config, refused

from gradroute.config.schema import Config
from gradroute.steps.base import RunState
from gradroute.steps.train import privacy_spent
from gradroute.tasks.language import LanguageModelling
from gradroute.training.devices import computing
from gradroute.training.private import Noise, Privacy, Private, drawn, privacy_of, spent

pytest.importorskip("opacus", reason="gradroute[dp] is not installed")

PLAIN = ["finetune=null", "model.expand=[]", "model.added=0", "privacy={epsilon: null, noise: 0.7, clip: 0.01}"]


def own(folder: Path, *overrides: str) -> Config:
    return config(folder, "stories_era/base", *PLAIN, *overrides)


def program(task: LanguageModelling, noise: Noise, accumulate: int = 1) -> Private:
    trainer = task.config.trainer
    trainer.optimizer, trainer.weight_decay, trainer.accumulate = "sgd", 0.0, accumulate
    made = Private(task.objective(), trainer, lambda: computing("float32", task.device), noise)
    made.set_rates([1.0])  # the parameters move by the gradient
    return made


def by_definition(task: LanguageModelling, rows: torch.Tensor, clip: float, size: int) -> torch.Tensor:
    """Return the update without noise, from one backward pass for each row."""
    parameters, length = list(task.model.parameters()), task.data.length
    summed = torch.zeros(sum(p.numel() for p in parameters))
    for row in rows:
        tokens, targets, documents, *_ = task.batch(row[None])
        logits = task.model(tokens, documents).flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(logits, targets.flatten(), ignore_index=-100, reduction="sum") / length
        gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
        summed += gradient * min(1.0, clip / (float(gradient.norm()) + 1e-6))
    return summed / size


@pytest.mark.parametrize("accumulate", [1, 3])
def test_an_update_is_the_definition_and_the_noise_of_its_seed(tmp_path: Path, accumulate: int) -> None:
    task = LanguageModelling(own(tmp_path))
    privacy, rows = Privacy(epsilon=None, noise=0.7, clip=0.01), torch.tensor([0, 3, 4, 7, 9])
    expected, size = (
        by_definition(task, rows, privacy.clip, task.config.trainer.batch_size),
        task.config.trainer.batch_size,
    )
    before = torch.cat([p.detach().flatten() for p in task.model.parameters()])
    made = program(task, Noise(privacy, 0.7, seed=5, update=2), accumulate)
    made.gradients([task.batch(rows)])
    made.update()
    moved = before - torch.cat([p.detach().flatten() for p in task.model.parameters()])
    generator = Noise(privacy, 0.7, 5, 2).generator(torch.device("cpu"))
    noise = torch.cat(
        [torch.normal(0, 0.7 * 0.01, p.shape, generator=generator).flatten() for p in task.model.parameters()]
    )
    assert torch.allclose(moved, expected + noise / size, atol=1e-6)
    assert float(expected.norm()) > 1e-4 and not hasattr(task.model, "autograd_grad_sample_hooks")
    assert not any(module._forward_hooks or module._backward_hooks for module in task.model.modules()
                   if module is not task.model)  # fmt: skip


def test_what_a_row_adds_does_not_depend_on_the_other_rows(tmp_path: Path) -> None:
    task = LanguageModelling(own(tmp_path))
    quiet = Noise(Privacy(epsilon=None, noise=0.7, clip=0.01), 0.0, 0)
    sums = []
    for rows in ([0, 3], [0], [3]):
        made = program(task, quiet)
        made.gradients([task.batch(torch.tensor(rows))])
        made.clipped.pre_step()
        sums.append(torch.cat([p.grad.flatten() for p in made.parameters.values() if p.grad is not None]))
        made.clipped.zero_grad()
    assert torch.allclose(sums[0], sums[1] + sums[2], atol=1e-7)


def test_rows_are_drawn_independently_and_reproducibly() -> None:
    found = [list(drawn(200, 20, torch.Generator().manual_seed(3))) for _ in range(2)]
    assert len(found[0]) == 10 and all(map(torch.equal, *found))
    counts = torch.bincount(
        torch.cat([rows for _ in range(100) for rows in drawn(50, 10, torch.Generator().manual_seed(_))])
    )
    assert len({len(rows) for rows in found[0]}) > 3  # not of one size
    mean = float(counts.float().mean()) / 500
    assert abs(mean - 0.2) < 0.01 and bool((counts > 60).all())
    assert all(len(rows) for rows in drawn(3, 2, torch.Generator().manual_seed(0)))


def test_the_noise_gives_the_epsilon_that_was_asked_for(tmp_path: Path) -> None:
    trainer = own(tmp_path).trainer
    trainer.epochs, trainer.batch_size = 2, 16
    found = spent(Privacy(epsilon=4.0, delta=1e-4), 800, trainer)
    assert 3.9 < found.epsilon <= 4.0
    again = spent(Privacy(epsilon=None, noise=found.noise, delta=1e-4), 800, trainer)
    assert again == found and spent(Privacy(epsilon=None, noise=2 * found.noise), 800, trainer).epsilon < 4


def test_a_resumed_update_draws_the_same_noise(tmp_path: Path) -> None:
    run = RunState()
    run.config, run.task = own(tmp_path), LanguageModelling(own(tmp_path))
    cost, privacy = privacy_spent(run), privacy_of(run.config)
    assert cost is not None and privacy is not None and cost.noise == 0.7
    draws = [
        torch.rand(3, generator=Noise(privacy, 0.7, 0, update).generator(torch.device("cpu"))) for update in (0, 1, 0)
    ]
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["privacy.noise=null"], r"privacy.noise=None: must be given if, and only if, privacy.epsilon is null"),
        (["privacy.clip=0"], r"privacy.clip=0(.0)?: must be from"),
        (["model.tied=true"], r"privacy: 1 parameters, such as model.embed.weight, .*model.tied=false"),
        (
            ["losses.l1={original: 0.1}", "routing=words_expanded", "model.expand=[0]", "model.added=8"],
            r"without penalties",
        ),
        (["trainer.compile=true"], r"trainer.compile=True: must be false for privacy"),
        (["trainer.precision=bfloat16"], r"trainer.precision=bfloat16: must be float32 or tf32"),
    ],
)
def test_what_cannot_be_private_is_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    refused(lambda: own(tmp_path, *changes), message)
