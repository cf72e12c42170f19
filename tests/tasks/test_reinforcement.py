"""A policy as a task: its batch, gradients, resuming and stacking against slow loops and the definition."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from conftest import Command

from gradroute.config.compose import configuration
from gradroute.data.environments.base import CONTINUES
from gradroute.data.environments.grid import GridWorld
from gradroute.errors import UserError
from gradroute.models.policy import LinearValue
from gradroute.records import checkpoints
from gradroute.records.run_reader import read_manifest
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.base import create
from gradroute.tasks.early_stopping import EarlyStopping
from gradroute.tasks.policy_objective import RETURN, SEEN, SEEN_RETURN, PolicyObjective
from gradroute.tasks.policy_plan import schedule
from gradroute.tasks.reinforcement import Reinforcement
from gradroute.tasks.rollouts import propagated, returns
from gradroute.training.fit import Fit
from gradroute.training.gradients import total
from gradroute.training.objectives import Batch
from gradroute.training.training import Training

TINY = ["trainer=smoke", "trainer.batch_size=12", "task.steps=10", "task.updates=3", "trainer.epochs=2",
        "trainer.device=cpu", "model.hidden=8", "environment.oversight=0.6", "ledger.window=2",
        "ledger.every=1"]  # fmt: skip


def made(*overrides: str, arm: str = "routing") -> Reinforcement:
    task = create(configuration([f"experiment=oversight/{arm}", *TINY, *overrides]))
    assert isinstance(task, Reinforcement)
    return task


def training(task: Reinforcement, seed: int = 0) -> Training:
    order = torch.Generator().manual_seed(seed)
    return Training("train", task.objective(), task.batch, task.points, task.config.trainer, order, source=task)


def walks_of(endings: torch.Tensor) -> Iterator[tuple[int, int, int | None]]:
    """Yield world, step, and the step at which the step's episode ends in the batch, or None."""
    for world, own in enumerate(endings.tolist()):
        for step in range(len(own)):
            yield world, step, next((at for at in range(step, len(own)) if own[at] != CONTINUES), None)


def test_returns_and_endings_are_those_of_slow_loops() -> None:
    draw = torch.Generator().manual_seed(0)
    endings = torch.randint(-6, 3, (7, 20), generator=draw).clamp(min=CONTINUES)
    rewards = torch.randn(7, 20, generator=draw).double()
    gained, number = returns(rewards, endings, 0.9), propagated(endings, 9)
    for world, step, end in walks_of(endings):
        last = 19 if end is None else end
        expected = sum(0.9 ** (at - step) * float(rewards[world, at]) for at in range(step, last + 1))
        assert float(gained[world, step]) == pytest.approx(expected, abs=1e-12)
        assert int(number[world, step]) == (9 if end is None else int(endings[world, end]))


def double(task: Reinforcement) -> tuple[PolicyObjective, Batch]:
    """Return the objective and a batch in float64."""
    observations, actions, gained, true, seen, group = task.batch(torch.arange(12))
    objective = task.objective().double()
    assert set(group.flatten().tolist()) == {0, 1, 2}
    return objective, (observations.double(), actions, gained.double(), true.double(), seen, group)


def by_definition(task: Reinforcement, batch: Batch, coefficients: tuple[float, float, float]) -> dict[str, Any]:
    """Return the gradients of the published loss, one data point at a time, with `detach` where the paper stops it."""
    model: Any = task.model
    observations, actions, gained, _, _, group = batch
    model.zero_grad()
    count = group.numel()
    told = int((group < 2).sum())
    for world in range(group.shape[0]):
        for step in range(group.shape[1]):
            seen, kind = observations[world, step][None], task.names[int(group[world, step])]
            diamond, ghost = model.experts["diamond"](seen), model.experts["ghost"](seen)
            logit = model.gate(seen)
            g = torch.sigmoid(logit)
            if kind == "seen_diamond":
                g, ghost = g.detach(), ghost.detach()
            if kind == "seen_ghost":
                g, diamond = g.detach(), diamond.detach()
            chances = torch.softmax(model.output(g * diamond + (1 - g) * ghost), -1)[0]
            value = model.value(seen)[0, 0]
            advantage = (gained[world, step] - value).detach()
            entropy = -(chances * chances.log()).sum()
            loss = -chances[actions[world, step]].log() * advantage - coefficients[1] * entropy
            loss = (loss + coefficients[0] * (gained[world, step] - value) ** 2) / count
            if kind != "unseen":
                right = torch.sigmoid(logit if kind == "seen_diamond" else -logit)[0, 0]
                loss = loss - coefficients[2] * right.log() / told
            loss.backward()
    gradients: dict[str, Any] = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    return gradients


def test_the_routed_gradient_is_the_definition() -> None:
    task = made()
    objective, batch = double(task)
    wanted = by_definition(task, batch, (0.5, 0.1, 0.01))
    for parts in (1, 5):
        objective.zero_grad()
        for part in objective.parts(batch, parts):
            total(objective(*part)).backward()
        for name, parameter in task.model.named_parameters():
            assert parameter.grad is not None and wanted[name].abs().max() > 0, name
            assert torch.allclose(parameter.grad, wanted[name], rtol=1e-9, atol=1e-12), (name, parts)


def test_the_gates_loss_is_a_slow_loop_and_reported_returns_are_means() -> None:
    task = made()
    objective, batch = double(task)
    terms, (observations, _, _, true, seen, group) = objective(*batch), batch
    losses, model = [], cast(Any, task.model)
    for world in range(group.shape[0]):
        for step in range(group.shape[1]):
            g = float(torch.sigmoid(model.gate(observations[world, step][None])))
            kind = int(group[world, step])
            losses += [-math.log(g if kind == 0 else 1 - g)] if kind < 2 else []
            assert bool(seen[world, step]) == (kind < 2)
    assert objective.gate is not None
    assert float(terms[objective.gate][0]) == pytest.approx(sum(losses) / len(losses), rel=1e-12)
    assert float(terms[RETURN][0]) == pytest.approx(float(true.mean())) and terms[RETURN][1] == 0
    means = {term: float(value) for term, (value, _) in terms.items()}
    task.model.float()  # the walk that is noted acts in float32
    assert task.after_epoch(2, 1, means)[SEEN_RETURN] == pytest.approx(float(true[seen].mean()))


def test_the_linear_baseline_is_its_layers_one_after_another() -> None:
    value, seen = LinearValue(4, 25).double(), torch.randn(6, 4, 5, 5).double()
    for parameter in value.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    plain = torch.nn.functional.conv2d(seen, value.planes.weight[:, :, None, None], value.planes.bias).flatten(1)
    for layer in value.layers:
        plain = layer(plain)
    parameters = list(value.parameters())
    assert torch.allclose(value(seen), plain, rtol=1e-10)
    wanted = torch.autograd.grad(plain.square().sum(), parameters)
    found = torch.autograd.grad(value(seen).square().sum(), parameters)
    assert all(torch.allclose(a, b, rtol=1e-9) for a, b in zip(found, wanted, strict=True))


def test_a_greedy_policy_takes_the_most_likely_action_and_is_measured_beside_the_drawn_one() -> None:
    task = made()
    taken = task.rollouts.collect(task.act(), greedy=True)
    with torch.no_grad():
        logits = task.model(taken.observations.flatten(0, 1))[0]
    assert torch.equal(logits.argmax(-1), taken.actions.flatten())
    drawn = task.rollouts.collect(task.act())
    assert not torch.equal(task.model(drawn.observations.flatten(0, 1))[0].argmax(-1), drawn.actions.flatten())
    found = {(head.name, metric): value for _, head, metric, value in task.measure([])}
    assert found["policy", "greedy_return"] != found["policy", "return"]
    assert list(task.measure([])) == list(task.measure([]))  # in the same worlds each time


def test_filtering_learns_nothing_from_unseen_endings() -> None:
    task = made(arm="filtering")
    batch = task.batch(torch.arange(12))
    observations, actions, gained, true, seen, group = batch
    unseen = group == task.names.index("unseen")
    assert 0 < int(unseen.sum()) < group.numel() and task.names[int(group[~seen & ~unseen][0])] == "unended"
    other = (observations, actions, torch.where(unseen, 100.0, gained), true, seen, group)
    gradients = []
    for own in (batch, other):
        objective = task.objective()
        objective.zero_grad()
        total(objective(*own)).backward()
        gradients.append([p.grad.clone() for p in task.model.parameters() if p.grad is not None])
    assert all(map(torch.equal, *gradients)) and any(bool(g.abs().max() > 0) for g in gradients[0])


def test_rewards_of_the_arms() -> None:
    truth, naive, either = (made(arm=arm) for arm in ("oracle", "naive", "routing"))
    assert truth.rewards is None and naive.rewards is not None and either.rewards is not None
    assert dict(zip(naive.endings, naive.rewards.tolist(), strict=True)) == {
        "seen_diamond": 1, "seen_ghost": -1, "unseen_diamond": 1, "unseen_ghost": 1, "timeout": 0, "unfinished": 0,
    }  # fmt: skip
    assert either.rewards.tolist() == [1, 1, 1, 1, 0, 0]
    assert truth.epochs * truth.points == round(0.6 * 6) * 12


@pytest.mark.parametrize(("epochs", "updates", "share", "total"), [
    (500, 40, 0.003, 60), (500, 40, 0.025, 500), (500, 40, 1.0, 20_000), (2, 40, 0.0, 1), (50, 40, 0.003, 6),
])  # fmt: skip
def test_a_share_of_the_updates_is_made_exactly(epochs: int, updates: int, share: float, total: int) -> None:
    own, each = schedule(epochs, updates, share)
    assert own * each == total and each <= updates


def test_a_resumed_training_continues_to_the_bit() -> None:
    whole, states = training(made()), []
    fit = Fit([whole], "float32", torch.device("cpu"))

    def after() -> None:
        if fit.step == 2:
            states.append(copy.deepcopy((fit.states(), whole.objective.state_dict())))

    fit.run(after)
    task = made()
    again = training(task)
    again.objective.load_state_dict(states[0][1])
    other = Fit([again], "float32", torch.device("cpu"))
    other.load_states(states[0][0])
    other.run()
    assert all(map(torch.equal, whole.objective.parameters(), again.objective.parameters()))
    assert other.step == 6


def test_stacked_policies_are_single_ones() -> None:
    seeds = ["seed=0", "seed=7"]
    alone = [training(made(seed)) for seed in seeds]
    for each in alone:
        Fit([each], "float32", torch.device("cpu")).run()
    stacked = [training(made(seed)) for seed in seeds]
    Fit(stacked, "float32", torch.device("cpu")).run()
    for one, other in zip(alone, stacked, strict=True):
        for a, b in zip(one.objective.parameters(), other.objective.parameters(), strict=True):
            assert torch.allclose(a, b, atol=2e-5)


def test_early_stopping_chooses_by_what_is_seen_alone() -> None:
    model, kept = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)
    stopping = EarlyStopping(model, kept, patience=2)
    for epoch, value in enumerate((0.1, 0.5, 0.4, 0.3, 0.9), 1):  # the last comes after two without a better one
        torch.nn.init.constant_(model.weight, epoch)
        stopping.see(epoch, value)
    assert float(kept.weight) == 2 and stopping.state_dict() == {"best": 0.5, "epoch": 2}
    task = made(arm="early_stopping")
    assert task.stopper is not None
    for epoch, true, seen in ((1, -5.0, 0.2), (2, 5.0, 0.1)):
        task.after_epoch(epoch, epoch, {RETURN: true, SEEN_RETURN: seen * 0.1, SEEN: 0.1})
    assert task.stopper.epoch == 1


@pytest.mark.parametrize(("override", "said"), [
    ("environment.oversight=1.5", "environment.oversight"), ("environment.size=1", "environment.size"),
    ("trainer.batch_size=0", "trainer.batch_size"), ("task.rewards.won=1", "task.rewards"),
    ("task.rewards.seen_ghost=.inf", "task.rewards.seen_ghost"), ("task.gate.unsaen=1", "task.gate"),
    ("task.seen=[won]", "task.seen"), ("trainer.train_limit=10", "trainer.train_limit"),
    ("trainer.batches=by_group", "trainer.batches"), ("trainer.compile=true", "trainer.compile"),
    ("losses.certificates=[gate]", "losses.certificates"), ("routing.labelled_fraction=0.5", "labelled_fraction"),
    ("routing.groups.unseen.labelled=0.5", "labelled"), ("model.experts=[a,b,c]", "model.experts"),
    ("dataset=mnist", "dataset"), ("task.discount=2", "task.discount"),
    ("routing.groups.seen_ghost.values=[seen_gost]", "seen_ghost"), ("split.groups=[[0],[1]]", "split"),
])  # fmt: skip
def test_bad_input_is_one_line(override: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        made(override)
    assert "\n" not in str(caught.value)


def test_a_reward_that_is_not_finite_ends_its_update_and_the_checkpoint_stays(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    step, calls = GridWorld.step, [0]

    def spoiled(world: GridWorld, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        endings, rewards = step(world, actions)
        calls[0] += len(actions) == 12  # those that are trained on, 10 steps an update
        return endings, torch.full_like(rewards, math.nan) if calls[0] > 40 else rewards

    config = configuration(["experiment=oversight/routing", *TINY, "checkpoint.minutes=0", f"output_dir={tmp_path}"])
    with monkeypatch.context() as patch:
        patch.setattr(GridWorld, "step", spoiled)
        (error,) = execute([config])
    assert isinstance(error, UserError)
    assert "update 4, epoch 2: environment: it gave the reward nan; a reward must be finite" in str(error)
    (manifest,) = tmp_path.glob("*/*/manifest.json")
    assert checkpoints.newest(manifest.parent)
    assert read_manifest(manifest.parent)["state"].startswith("failed (update 4")
    execute([config], folder=manifest.parent)  # with a world that is mended
    assert read_manifest(manifest.parent)["state"] == "finished"


@pytest.mark.slow
def test_a_run_from_the_command_line_is_verified_made_again_and_loaded(forked: Command, tmp_path: Path) -> None:
    more = [*TINY, "checkpoint.replay=1", "model.hidden=8"]
    result = forked("gradroute-run", "experiment=oversight/early_stopping", *more, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "seen_return" in result.stdout
    (run,) = (tmp_path / "outputs" / "oversight_early_stopping").iterdir()
    claims = list(claims_of(run, replay=1))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert any("policy_stopped" in claim.what for claim in claims) and any("made again" in c.what for c in claims)
    import gradroute

    loaded = gradroute.load(run)
    assert loaded.model(torch.zeros(2, 4, 5, 5))[0].shape == (2, 4)
    assert b"acTL" in (run / "plots" / "walks.png").read_bytes()  # the page's picture is animated
