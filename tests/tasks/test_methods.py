"""Unlearning methods: what each one trains, and reusing the training of another run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import refused

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.packing import IGNORED
from gradroute.data.text.token_shares import distinctive
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.language import LanguageModelling

SMALL = [
    "trainer=smoke", "trainer.device=cpu", "model.layers=4", "model.width=16",
    "model.heads=2", "model.hidden=24", "dataset.stories=80",
    "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8", "relearn.documents=[2]",
    "relearn.samples=1", "completions=null",
]  # fmt: skip
FINETUNED = ["finetune.documents=[4]"]


def config(folder: Path, experiment: str, *overrides: str) -> Config:
    return configuration([f"experiment={experiment}", *SMALL, f"output_dir={folder}", *overrides])


def gradients(task: LanguageModelling, labels: int | None = None) -> dict[str, torch.Tensor]:
    """Return the parameters' gradients on a batch, from documents of the group number `labels` only, if given."""
    objective = task.objective()
    batch = list(task.batch(torch.arange(min(12, task.points))))
    if labels is not None:
        batch[1] = torch.where(batch[3] == labels, batch[1], IGNORED)
    terms = objective(*batch)
    router = task.parameter_router
    if router is None:
        torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
    else:
        groups: dict[str | None, torch.Tensor] = {}
        for term, (value, weight) in terms.items():
            key = term.group if term.group in task.names else None
            groups[key] = groups.get(key, torch.zeros(())) + value * weight
        router.backward(groups)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in task.model.named_parameters()}


def test_an_expert_is_trained_by_its_own_group_alone(tmp_path: Path) -> None:
    changes = ["model.added=24", *FINETUNED]
    for labels, own, other in ((0, slice(24, 48), slice(0, 24)), (1, slice(0, 24), slice(24, 48))):
        task = LanguageModelling(config(tmp_path, "stories_era/demix", *changes))
        assert task.names == ["forget", "retain"]
        found = gradients(task, labels)
        for layer in range(4):
            up = found[f"blocks.{layer}.mlp.up.weight"]
            assert bool(up[own].any()) and not bool(up[other].any())


def test_reserved_units_and_heads_are_all_that_forget_documents_train(tmp_path: Path) -> None:
    changes = ["model.added=8", "routing.groups.retain.labelled=1", *FINETUNED]
    heads = ("attn.query", "attn.key", "attn.value")
    for labels, own in ((0, True), (1, False)):  # forget documents train the reserved part, retain documents the rest
        task = LanguageModelling(config(tmp_path, "stories_era/sgtm", *changes))
        for name, gradient in gradients(task, labels).items():
            first = 24 if ".mlp." in name else 16  # of the reserved rows or columns
            module = name.rpartition(".")[0]
            if module.endswith((".mlp.up", *heads)):
                rest, reserved = gradient[:first], gradient[first:]
            elif name.endswith(("mlp.down.weight", "attn.out.weight")):
                rest, reserved = gradient[:, :first], gradient[:, first:]
            else:
                assert bool(gradient.any()) != own, name
                continue
            assert reserved.numel() and bool(reserved.any()) == own, name
            if not name.endswith("key.bias"):  # its gradient is 0 but for rounding: softmax ignores it
                assert bool(rest.any()) != own, name


@pytest.mark.slow
def test_the_share_of_retain_labels_is_its_own(tmp_path: Path) -> None:
    """Fewer forget labels leave the labels of retain documents as they are, and the other way round."""
    tasks = [
        LanguageModelling(config(tmp_path, "stories_era/sgtm", "model.added=8", *FINETUNED, *given))
        for given in ([], ["routing.labelled_fraction=0.25"], ["routing.groups.retain.labelled=0.75"])
    ]
    counts = [[int((task.labelled == i).sum()) for i in (0, 1)] for task in tasks]
    assert torch.equal(tasks[0].labelled == 1, tasks[1].labelled == 1) and counts[0][0] > counts[1][0] > 0
    assert torch.equal(tasks[0].labelled == 0, tasks[2].labelled == 0) and counts[0][1] < counts[2][1]


def test_who_has_no_label_is_taken_for_one_of_the_others(tmp_path: Path) -> None:
    few = "routing.labelled_fraction=0.25"
    filtering = LanguageModelling(config(tmp_path, "stories_era/filtering", few))
    assert int((filtering.labelled == 0).sum()) < int((filtering.train_groups == 0).sum())
    assert int((filtering.labelled == -1).sum()) == 0
    sgtm = LanguageModelling(config(tmp_path, "stories_era/sgtm", "model.added=8", few, *FINETUNED))
    assert int((sgtm.labelled == -1).sum()) == int((sgtm.labelled != sgtm.train_groups).sum()) > 0
    assert int(((sgtm.labelled == -1) & (sgtm.train_groups == 0)).sum()) > 0
    assert torch.equal(sgtm.labelled == 0, filtering.labelled == 0)


def test_every_method_is_measured_on_the_same_tokens(tmp_path: Path) -> None:
    """With and without the tokens of the group, whatever is routed and labelled."""
    kept = []
    for experiment in ("stories_era", "stories_era/sgtm", "stories_era/filtering"):
        given = [] if experiment.endswith("filtering") else [*FINETUNED, "model.added=8"]
        task = LanguageModelling(config(tmp_path, experiment, "routing.labelled_fraction=0.5", *given))
        own = distinctive(task.data, task.config.routing, task.names, task.train_groups, task.test_groups)
        assert own is not None
        kept.append(own)
    assert torch.equal(kept[0], kept[1]) and torch.equal(kept[0], kept[2])
    assert 0 < int((kept[0] >= 0.5).sum()) < len(kept[0]) / 4


def rows_of(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run, read_manifest(run))


@pytest.mark.slow
def test_a_training_is_taken_over_to_the_bit(tmp_path: Path) -> None:
    (base,) = execute([config(tmp_path, "stories_era/base")])
    wanted = ["name=other", "relearn.documents=[3]"]
    (alone,) = execute([config(tmp_path / "alone", "stories_era/base", *wanted)])
    (taken,) = execute([config(tmp_path, "stories_era/base", *wanted, "trained=auto")])
    assert isinstance(base, Path) and isinstance(alone, Path) and isinstance(taken, Path), taken
    assert read_manifest(taken)["trained_in"] == f"{base.parent.name}/{base.name}"
    assert "trained_in" not in read_manifest(alone)
    for name in ("metrics.csv", "ledger.csv", "model.safetensors", "config.yaml"):
        mine, reference = (taken / name).read_bytes(), (alone / name).read_bytes()
        assert mine == reference.replace(str(tmp_path / "alone").encode(), str(tmp_path).encode()), name
    assert all(claim.holds for claim in claims_of(taken, replay="all"))
    assert load(taken).config.trained is None


def test_images_take_a_training_over_too(tmp_path: Path) -> None:
    small = ["trainer=smoke", "trainer.device=cpu", f"output_dir={tmp_path}", "trainer.train_limit=512",
             "trainer.batch_size=64", "model.hidden=[32]"]  # fmt: skip
    other = [*small, "steps=[train,certify,evaluate]", "trained=auto", "name=certified"]
    given = [configuration(overrides) for overrides in (small, other, [*other[:-2], "name=alone"])]
    runs = [execute([own])[0] for own in given]
    assert all(isinstance(run, Path) for run in runs), runs
    _, taken, reference = [Path(str(run)) for run in runs]
    assert (taken / "metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    assert json.loads((taken / "manifest.json").read_text())["trained_in"].startswith("mnist_split/")


def test_another_training_is_not_taken_over(tmp_path: Path) -> None:
    (base,) = execute([config(tmp_path, "stories_era/base")])
    assert isinstance(base, Path)
    (found,) = execute([config(tmp_path, "stories_era/base", "name=slower", "trainer.lr=0.001", "trained=auto")])
    assert isinstance(found, Path) and "trained_in" not in read_manifest(found)
    assert [row["step"] for row in rows_of(found) if row["split"] == "train"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainer.lr=0.001"], "trained with another trainer.lr; name another run, or leave trained out"),
        (["seed=3"], "its data are different|trained with another seed"),
        (["trained=nowhere"], "not a run folder"),
        (["trained=' '"], "must be a folder's path"),
        (["routing.unlabelled=retian"], "did you mean retain"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    (base,) = execute([config(tmp_path, "stories_era/base")])
    before = sorted(tmp_path.rglob("*"))
    given = changes if any(c.startswith("trained") for c in changes) else [f"trained={base}", *changes]
    refused(lambda: config(tmp_path, "stories_era/base", *given), message)
    assert sorted(tmp_path.rglob("*")) == before
