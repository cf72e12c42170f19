"""Maximum entropy, gradient difference and UNDO: losses against every token by itself, what they reach, resuming."""

import math
from pathlib import Path

import pytest
import torch
from conftest import Command
from interrupted import interrupted
from small_language import refused
from torch import nn

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.packing import IGNORED
from gradroute.records.checkpoints import newest
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.steps.misdirection import activation
from gradroute.steps.undo import Undo, add_noise
from gradroute.steps.unlearn import RMU, GradientDifference, MaxEntropy, Unlearn
from gradroute.steps.unlearning_losses import DistillationObjective, ForgetRetainObjective
from gradroute.tasks.language import LanguageModelling

SMALL = [
    "trainer=smoke", "trainer.device=cpu", "model.layers=2", "model.width=16", "model.heads=2", "model.hidden=24",
    "dataset.stories=80", "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8",
    "relearn.documents=[2]", "completions=null",
]  # fmt: skip
METHODS = ["max_entropy", "gradient_difference", "undo"]


def config(folder: Path, method: str, *overrides: str) -> Config:
    return configuration([f"experiment=stories_era/{method}", *SMALL, f"output_dir={folder}", *overrides])


def distributions(model: nn.Module, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """The probabilities of the next token, of one row after another."""
    rows = [model(tokens[i : i + 1], documents[i : i + 1])[0] for i in range(len(tokens))]
    return torch.stack([row.exp() / row.exp().sum(-1, keepdim=True) for row in rows])


def by_token(method: Unlearn, now: torch.Tensor, before: torch.Tensor, target: int, forget: bool) -> torch.Tensor:
    """The loss of one token: its probabilities under the model and under the frozen one, and what it should be."""
    vocabulary = len(now)
    if isinstance(method, Undo):
        return (before * (before / now).log()).sum()
    if not forget:
        return -now[target].log()
    if isinstance(method, MaxEntropy):
        return (now * (now * vocabulary).log()).sum()
    return -torch.minimum(-now[target].log(), now.new_tensor(math.log(vocabulary)))


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("kind", [MaxEntropy, GradientDifference, Undo])
def test_the_loss_and_its_gradients_are_those_of_every_token_by_itself(
    tmp_path: Path, kind: type[Unlearn], parts: int
) -> None:
    task = LanguageModelling(config(tmp_path, "base"))
    task.model.double()
    method, model, frozen = kind(group="forget", retain=3.0), task.left(), task.left()
    with torch.no_grad():  # as if some updates had been made, so that losses are on both sides of a uniform guess
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)))
    rows = (task.routed == task.names.index("forget")).any(1).nonzero().flatten()[:2]
    batch = task.batch(torch.cat([rows, torch.tensor([0, 1, 2])]))
    objective: ForgetRetainObjective = method.objective(task, model)
    values = dict.fromkeys(objective.weights, 0.0)
    for part in objective.parts(batch, parts):
        terms = objective(*part)
        torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
        for term, (value, _) in terms.items():
            values[term] += value.item()
    ours = {name: torch.clone(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()

    tokens, targets, documents, groups, _ = batch
    now, before = distributions(model, tokens, documents), distributions(frozen, tokens, documents).detach()
    losses: dict[bool, list[torch.Tensor]] = {True: [], False: []}
    for i, j in (targets != IGNORED).nonzero().tolist():
        forget = int(groups[i, j]) == task.names.index("forget")
        losses[forget].append(by_token(method, now[i, j], before[i, j], int(targets[i, j]), forget))
    means = [torch.stack(losses[forget]).mean() for forget in (True, False)]
    (means[0] + 3.0 * means[1]).backward()
    signs = [-1 if kind is GradientDifference else 1, 1]
    assert list(values.values()) == pytest.approx([s * m.item() for s, m in zip(signs, means, strict=True)], rel=1e-9)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-7, atol=1e-12)
    if kind is GradientDifference:
        bounded = torch.stack(losses[True]) == -math.log(now.shape[-1])
        assert 0 < int(bounded.sum()) < len(bounded)


def test_a_frozen_teacher_is_not_trained(tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, "base"))
    student, teacher = task.left(), task.left()
    objective = DistillationObjective(student, teacher, "forget", 0, 1.0)
    assert {id(p) for p in objective.parameters()} == {id(p) for p in student.parameters()}
    assert all(
        value.item() == pytest.approx(0, abs=1e-6) for value, _ in objective(*task.batch(torch.arange(4))).values()
    )


def test_noise_is_added_to_matrices_and_vectors_only_shrink() -> None:
    def noised(alpha: float, seed: int = 0) -> list[torch.Tensor]:
        torch.manual_seed(5)
        model = nn.Linear(30, 20)
        add_noise(model, alpha, 0.1, seed)
        return [model.weight.detach(), model.bias.detach()]

    (weight, bias), (kept, kept_bias) = noised(0.4), noised(0.0)
    assert torch.equal(kept, nn.Linear(30, 20).weight) is False  # another draw
    torch.testing.assert_close(bias, 0.6 * kept_bias)
    noise = (weight - 0.6 * kept) / (0.4 * 0.1)
    bound = math.sqrt(6 / (30 + 20))
    assert 0.9 * bound < float(noise.abs().max()) <= bound * 1.0001 and abs(float(noise.mean())) < 0.1 * bound
    assert torch.equal(noised(0.4)[0], weight) and not torch.equal(noised(0.4, 1)[0], weight)
    torch.testing.assert_close(noised(1.0)[0], 0.1 * noise, rtol=1e-4, atol=1e-6)


def test_the_target_of_rmu_follows_the_norm_of_the_stream(tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, "base"))
    method = RMU(group="forget", layers=[0, 1], norm=None, norm_factor=3.0)
    norms = []
    for row in range(task.points):
        tokens, _, documents, *_ = task.batch(torch.tensor([row]))
        stream = activation(task.left(), "blocks.1", tokens, documents)[0]
        norms += [stream[j].norm().item() for j in range(len(stream)) if documents[0, j] >= 0]
    assert task.points < 256 and len(norms) < task.points * 48
    target = method.objective(task, task.left()).target
    assert float(target.norm()) == pytest.approx(3 * sum(norms) / len(norms), rel=1e-5)


def losses_on_test(run: Path) -> dict[tuple[str, str], float]:
    """The cross-entropy of each head and group on the test documents."""
    rows = [row for row in read_metrics(run) if (row["split"], row["metric"]) == ("test", "cross_entropy")]
    return {(row["head"], row["group"]): row["value"] for row in rows}


def two_alphabets(folder: Path) -> list[str]:
    """Documents that repeat one of two alphabets, from any letter on; overrides that read them and learn both."""
    folder.mkdir()
    alphabets = ("abcdefgh", "pqrstuvw")
    texts = [" ".join((alphabets[n % 2] * 4)[n // 2 % 8 :][:16]) for n in range(96)]
    (folder / "texts.txt").write_text("\n<|endoftext|>\n".join(texts))
    return [
        "dataset=text", f"dataset.files={folder}", "dataset.stories=64", "dataset.test_stories=32",
        "dataset.length=17", "dataset.tokenizer=words", "dataset.vocabulary=null", "routing.groups.forget.words=[a]",
        "trainer.epochs=30", "trainer.lr=0.01", "trainer.weight_decay=0", "trainer.unlearn_steps=60", "relearn=null",
        "steps=[train,unlearn,evaluate]",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_forget_loss_rises_and_the_retain_loss_is_kept(tmp_path: Path, method: str) -> None:
    given = two_alphabets(tmp_path / "texts")
    (run,) = execute([config(tmp_path / "runs", method, *given)])
    assert isinstance(run, Path), run
    found = losses_on_test(run)
    before, after = (
        {group: found[head, group] for group in ("forget", "retain")} for head in ("model", "model_unlearned")
    )
    assert max(before.values()) < 0.5, before  # both were learned
    assert after["forget"] > before["forget"] + 1 and after["retain"] < before["retain"] + 0.2, (before, after)
    assert all(claim.holds for claim in claims_of(run)), [c for c in claims_of(run) if not c.holds]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "after", "position"),
    [
        ("max_entropy", 3, "0 trainings, 3 updates"),
        ("gradient_difference", 3, "0 trainings, 3 updates"),
        ("undo", 2, "0 trainings, 2 updates"),  # while the teacher unlearns
        ("undo", 5, "1 trainings, 2 updates"),  # while the student learns
    ],
)
def test_a_run_that_was_interrupted_while_it_unlearns_goes_on_to_the_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, after: int, position: str
) -> None:
    changes = ["trainer.unlearn_steps=6", "checkpoint.minutes=0", "steps=[train,unlearn,relearn,evaluate]"]
    (whole,) = execute([config(tmp_path / "whole", method, *changes)])
    own = config(tmp_path / "cut", method, *changes)
    assert isinstance(whole, Path)
    trained = max(row["step"] for row in read_metrics(whole) if row["split"] == "train")
    (cut,) = interrupted(monkeypatch, [own], trained + 1 + after)  # one checkpoint at the end of `train`
    found = newest(cut)
    assert found is not None and position in found.position
    assert execute([own], folder=cut) == [cut]
    for name in ("metrics.csv", "model.safetensors", "summary.json"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name
    assert not [name for name in read_manifest(cut)["files"] if "teacher" in name]


def test_the_command_line_unlearns_and_verifies(forked: Command, tmp_path: Path) -> None:
    given = [*SMALL, "dataset.validation_stories=10", "unlearn.teacher.rate=0.2"]
    result = forked("gradroute-run", "experiment=stories_era/undo", *given, cwd=tmp_path)
    assert result.returncode == 0 and "model_unlearned" in result.stdout, result.stderr
    (run,) = tmp_path.glob("outputs/stories_undo/*")
    assert (run / "report.html").is_file() and "the loss on forget" in (run / "report.html").read_text()
    assert forked("gradroute-verify", str(run), cwd=tmp_path).returncode == 0


def test_without_a_teacher_the_ablated_model_is_distilled(tmp_path: Path) -> None:
    undo = "unlearn={_target_:gradroute.steps.undo.Undo,group:forget,alpha:0.0}"
    changes = ["steps=[train,ablate,unlearn,evaluate]", "finetune=null", "relearn=null", undo, "trainer.lr=1e-12"]
    (run,) = execute([config(tmp_path, "control", "model.added=8", "model.expand=[0,1]", *changes)])
    assert isinstance(run, Path), run
    found = losses_on_test(run)
    for group in ("forget", "retain"):
        assert found["model_unlearned", group] == pytest.approx(found["model_ablated", group], rel=1e-6)


MISTAKES: list[tuple[str, list[str], str]] = [
    ("max_entropy", ["unlearn.group=forgte"], "did you mean forget"),
    ("max_entropy", ["unlearn.retain=-1"], "unlearn.retain=-1.0: must be from 0"),
    ("max_entropy", ["unlearn.layers=[0]"], "unknown key 'unlearn.layers'; MaxEntropy takes: group, retain, rate"),
    ("max_entropy", ["unlearn._target_=gradroute.steps.unlearn.MaxEntrpy"], "did you mean MaxEntropy"),
    ("max_entropy", ["unlearn._target_=gradroute.steps.unlearn.Unlearn"], "has no objective"),
    ("gradient_difference", ["trainer.unlearn_steps=null"], "trainer.unlearn_steps"),
    ("gradient_difference", ["unlearn.rate=0"], "unlearn.rate=0"),
    ("undo", ["unlearn.alpha=1.5"], "unlearn.alpha=1.5: must be from 0 to 1"),
    ("undo", ["unlearn.teacher.group=retain"], "unlearn.teacher.group=retain: must be unlearn.group=forget"),
    ("undo", ["unlearn.teacher.rate=-1"], "unlearn.teacher.rate=-1"),
    ("undo", ["unlearn.share=0"], "unlearn.share=0.0: must be such that teacher and student both get some"),
    ("undo", ["trainer.unlearn_steps=1"], "both get some of trainer.unlearn_steps=1"),
    ("undo", ["unlearn.teacher=5"], "unlearn.teacher: must be null, or another method"),
    ("undo", ["unlearn.teacher={_target_:gradroute.steps.undo.Undo}"], "unlearn.teacher: must be null, or another"),
    ("rmu", ["unlearn.norm_factor=2", "unlearn.layers=[0]"], "unlearn.norm_factor=2.0: must be given if, and"),
    ("rmu", ["unlearn.norm=null", "unlearn.layers=[0]"], "unlearn.norm_factor=None: must be given if, and"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "changes", "message"), MISTAKES)
def test_mistakes_are_said_in_one_line(tmp_path: Path, method: str, changes: list[str], message: str) -> None:
    refused(lambda: config(tmp_path, method, *changes), message)
    assert not list(tmp_path.iterdir())


def test_a_method_that_is_no_step_is_refused(tmp_path: Path) -> None:
    refused(lambda: config(tmp_path, "max_entropy", "unlearn._target_=torch.nn.Linear"), "is not a step")
