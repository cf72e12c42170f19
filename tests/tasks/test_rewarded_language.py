"""Rewards for replies: what they come to, the loss against its definition, the routes, and resuming."""

from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import goes_on_alike

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.running.verify import claims_of
from gradroute.tasks.base import create
from gradroute.tasks.rewarded_language import RewardedLanguage
from gradroute.training.gradients import backward, total

pytest.importorskip("peft")
TINY = [
    "experiment=rewards", "trainer=smoke", "trainer.device=cpu", "model.layers=1", "model.width=16", "model.heads=2",
    "model.hidden=24", "dataset.stories=60", "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8",
    "pretrain.epochs=1", "routing.regions.forget.rank=2", "routing.regions.retain.rank=2", "task.prompts=12",
]  # fmt: skip
REPLIES = ["happy, happy day.", "a day without it", "Happy!", "the end.", "unhappy", "happy happy happy happy"]


def tiny(*overrides: str) -> Config:
    return configuration([*TINY, *overrides])


@pytest.fixture
def task() -> RewardedLanguage:
    found = create(tiny("task.seen=1", "task.keyword=happy"))
    assert isinstance(found, RewardedLanguage)
    return found


def forced(task: RewardedLanguage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the replies read as `REPLIES`, whatever the model writes."""
    monkeypatch.setattr(task, "_replies", lambda text: REPLIES[: len(text)])


def test_a_reply_earns_its_end_and_a_bonus_for_every_keyword_up_to_a_limit(task: RewardedLanguage) -> None:
    told = task.told(REPLIES)
    assert told.tolist() == [[3, 1, 1], [0, 0, 0], [2, 1, 1], [1, 1, 0], [0, 0, 0], [3, 0, 1]]


def test_a_batch_has_the_models_own_replies_and_their_groups(
    task: RewardedLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced(task, monkeypatch)
    rows = torch.tensor([3, 1, 4, 0, 7, 5])
    tokens, targets, _, group, _, advantage, told = task.batch(rows)
    start = task.prompt
    assert torch.equal(tokens[:, :start], task._asked[rows]) and tokens.shape == (6, start + task.reply)
    assert torch.equal(targets[:, start - 1 : -1], tokens[:, start:])
    assert bool((targets[:, : start - 1] == IGNORED).all() and (targets[:, -1] == IGNORED).all())
    forget, retain = (task.names.index(name) for name in ("forget", "retain"))
    assert group[:, 0].tolist() == [forget, retain, forget, retain, retain, forget]
    assert task.known.there[rows].tolist() == [[n == own for n in range(3)] for own in group[:, 0].tolist()]
    reward = told[:, 0]
    wanted = (reward - reward.mean()) / reward.std(correction=0)
    torch.testing.assert_close(advantage, wanted[:, None].expand_as(advantage), rtol=1e-4, atol=1e-4)


def test_an_overseer_who_sees_nothing_labels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    task: Any = create(tiny("task.seen=0", "task.keyword=happy"))
    forced(task, monkeypatch)
    assert set(task.batch(torch.arange(6))[3].unique().tolist()) == {task.names.index("retain")}


def test_the_routed_gradient_is_that_of_the_definition_reply_by_reply(
    task: RewardedLanguage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum over replies of advantage times the gradient of minus their log-probability, where the reply may go."""
    forced(task, monkeypatch)
    task.model.double()
    rows = torch.arange(6)
    batch = tuple(t.double() if t.is_floating_point() else t for t in task.batch(rows))
    objective, router = task.objective(), task.parameter_router
    assert router is not None
    names = {name: p for name, p in task.model.named_parameters() if p.requires_grad}
    objective.present, objective.there = frozenset(task.known.numbers[rows].tolist()), task.known.there[rows]
    backward(objective(*batch), router)
    found = {name: p.grad.clone() for name, p in names.items() if p.grad is not None}
    tokens, targets, documents, group, _, advantage, _ = batch
    predicted = int((targets != IGNORED).sum())
    wanted = {name: torch.zeros_like(p) for name, p in names.items()}
    for row in range(len(rows)):
        log = task.model(tokens[row : row + 1], documents[row : row + 1])[0].log_softmax(-1)
        own = targets[row] != IGNORED
        loss = -(log[own].gather(-1, targets[row][own][:, None]).sum() * advantage[row, 0]) / predicted
        gradients = torch.autograd.grad(loss, list(names.values()), allow_unused=True)
        hidden = task.names[int(group[row, 0])] == "forget"
        for (name, total_), gradient in zip(wanted.items(), gradients, strict=True):
            if gradient is not None and not (hidden and ".retain." in name):
                total_ += gradient
    assert found and any(".retain." in name for name in found) and any(".forget." in name for name in found)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-9, atol=1e-12)


def test_parts_of_a_batch_add_up(task: RewardedLanguage, monkeypatch: pytest.MonkeyPatch) -> None:
    forced(task, monkeypatch)
    objective, batch = task.objective(), task.batch(torch.arange(6))
    whole = {term: value.item() for term, (value, _) in objective(*batch).items()}
    parts: dict[Any, float] = {}
    for part in objective.parts(batch, 3):
        for term, (value, _) in objective(*part).items():
            parts[term] = parts.get(term, 0.0) + value.item()
    assert whole == pytest.approx(parts, rel=1e-5) and len(whole) == 5
    assert total(objective(*batch)).item() != 0


@pytest.mark.slow
def test_a_run_goes_on_to_the_bit_and_its_claims_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keyword is one that an untrained model writes, so that the overseer has something to see."""
    changes = ("checkpoint.replay=1", "checkpoint.minutes=0", "task.keyword=the")
    whole, cut = (tiny(f"output_dir={tmp_path / name}", *changes) for name in ("whole", "cut"))
    run = goes_on_alike(monkeypatch, whole, cut, 3, ("metrics.csv", "ledger.csv", "model.safetensors"))
    claims = list(claims_of(run, replay="all"))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert any("forget's task loss never reached 'retain'" in claim.what for claim in claims)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("task.group=x", "unknown value of task.group: 'x'; valid: forget, retain"),
        ("task.others=forget", "task.others=forget: must be another group"),
        ("task.reply=40", "dataset.length=48: must be 64 or more"),
        ("task.keyword='two words'", "task.keyword"),
        ("trainer.batches=by_group", "trainer.batches=by_group: must be mixed"),
        ("task.prompt=30000", "task.prompt=30000: must be"),
    ],
)
def test_bad_settings_are_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError) as error:
        create(tiny(override))
    assert said in str(error.value) and len(str(error.value).splitlines()) == 1
