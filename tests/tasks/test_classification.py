"""A classifier as a run: its loss against slow references, its model against torchvision's, and refused settings."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from interrupted import interrupted
from small_images import hundred_classes
from torch import nn
from torchvision.transforms.v2 import functional as one_image

from gradroute import load
from gradroute.comparison.compare import compare
from gradroute.config.compose import configuration
from gradroute.config.schema import Config, LossesConfig
from gradroute.data.images.dataset import Images
from gradroute.errors import UserError
from gradroute.models.resnet import ResNetSizes, SplitResNet, build_certificate, build_decoder
from gradroute.records.run_reader import read_names
from gradroute.records.tables import read_metrics
from gradroute.routing import Monitor, Region, Router
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.augmentation import Augmentation, augmented
from gradroute.tasks.classification import Classification
from gradroute.tasks.image_objectives import ClassificationObjective
from gradroute.training.fit import Fit
from gradroute.training.gradients import Single
from gradroute.training.training import Training

SMALL = [
    "experiment=class_split", "trainer=smoke", "trainer.device=cpu", "model.blocks=[1,1]",
    "model.width=8", "model.split=layer2", "routing.regions.top.units='0:8'",
    "routing.regions.bottom.units='8:16'", "trainer.train_limit=192", "trainer.test_limit=64",
    "trainer.batch_size=64",
]  # fmt: skip
STEPS = "steps=[train,certify,ablate,evaluate]"


def config(folder: Path, *overrides: str) -> Config:
    return configuration([*SMALL, f"output_dir={folder}", *overrides])


def made(folder: Path, *overrides: str) -> Path:
    (run,) = execute([config(folder, *overrides)])
    assert isinstance(run, Path), run
    return run


def routed(norm: str, split: str) -> tuple[SplitResNet, Router, ClassificationObjective, list[torch.Tensor]]:
    """Return a small network in float64 with two routed halves and certificates, its router, loss, and a batch."""
    torch.manual_seed(3)
    sizes = ResNetSizes([1, 1], 8, split, norm)
    model, units = SplitResNet([3, 8, 8], 4, [1, 1], 8, split, "batch" if norm == "batch" else "group"), sizes.encoding
    model = model.double()
    images, labels = torch.randn(6, 3, 8, 8, dtype=torch.float64), torch.tensor([0, 3, 1, 2, 3, 0])
    groups = (labels > 1).long()
    half = units // 2
    regions = {"top": Region("encoder", f"0:{half}", 1), "bottom": Region("encoder", f"{half}:{units}", 1)}
    routes = {"low": {"bottom": 0.0}, "high": {"top": 0.25}}
    router = Router(model, regions, ["low", "high"], routes, images[:1])
    certificates = nn.ModuleDict({name: build_certificate(sizes, (1, 1, half), 4) for name in regions}).double()
    losses = LossesConfig(["top", "bottom"], {"top": 3e-3, "bottom": 5e-3}, 0.0, {"high": 0.5})
    objective = ClassificationObjective(model, certificates, router, losses, several_passes=norm == "batch")
    return model, router, objective, [images, labels, groups]


def reference(objective: ClassificationObjective, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the loss by its definition: each image's own, from a pass under its group's mask, made with `detach`.

    Every pass has all images, because batch norm makes them depend on each other.
    """
    model: Any = objective.model
    model.train()
    z = model.encoder(model.normalise(images))
    half, total = z.shape[1] // 2, torch.zeros((), dtype=z.dtype)
    for i, label in enumerate(labels):
        mask = torch.ones(z.shape[1], dtype=z.dtype)
        if label > 1:
            mask[:half] = 0.25
        else:
            mask[half:] = 0.0
        mask = mask.view(1, -1, 1, 1)
        logits = model.decoder(z * mask + (z * (1 - mask)).detach())[i]
        number = int(((labels > 1) == (label > 1)).sum())
        weight = 0.5 if label > 1 else 1.0
        total = total - weight * logits.log_softmax(0)[label] / number
    for name, part, weight in (("top", z[:, :half], 3e-3), ("bottom", z[:, half:], 5e-3)):
        logits = objective.certificates[name](part.detach().permute(0, 2, 3, 1))
        total = total - logits.log_softmax(1)[torch.arange(len(labels)), labels].mean()
        total = total + weight * part.abs().sum(1).mean()
    return total


def own_gradients(objective: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    return list(torch.autograd.grad(loss, list(objective.parameters()), retain_graph=True))


@pytest.mark.parametrize("split", ["layer1", "layer2"])
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_loss_and_gradients_are_those_of_the_definition(norm: str, split: str) -> None:
    model, _, objective, (images, labels, groups) = routed(norm, split)
    terms = objective(images, labels, groups)
    ours = torch.stack([value * weight for value, weight in terms.values()]).sum()
    objective.train()
    theirs = reference(objective, images, labels)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=0)
    for mine, other in zip(own_gradients(objective, ours), own_gradients(objective, theirs), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-7, atol=1e-12)
    # one pass under every image's own mask is equivalent with group norm, but not with batch norm after the split
    objective.several_passes, model.training = False, True
    once = objective(images, labels, groups)
    single = own_gradients(objective, torch.stack([value * weight for value, weight in once.values()]).sum())
    different = max(
        float((a - b).norm() / b.norm())
        for a, b in zip(single, own_gradients(objective, ours), strict=True)
        if b.norm() > 1e-9
    )
    assert different > 0.01 if (norm, split) == ("batch", "layer1") else different < 1e-7


def test_a_monitor_sees_passes_of_groups_as_it_sees_one_pass() -> None:
    """Compare norms of activations, routed gradients and penalties, where images do not depend on each other."""
    _, router, objective, batch = routed("group", "layer1")
    seen = []
    for several in (False, True):
        objective.several_passes, objective.monitor = several, Monitor(router.regions, router.groups)
        terms = objective(*batch)
        torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
        seen.append(list(objective.monitor.norms()))
    assert [(n.group, n.region, n.points) for n in seen[0]] == [(n.group, n.region, n.points) for n in seen[1]]
    for one, several in zip(*seen, strict=True):
        for what in ("activation", "routed", "unrouted"):
            assert getattr(one, what) == pytest.approx(getattr(several, what), rel=1e-6), what
    assert min(n.unrouted for n in seen[1]) > 0 and seen[1][0].routed > 0


@pytest.mark.parametrize(("blocks", "name"), [([2, 2, 2, 2], "resnet18"), ([3, 4, 6, 3], "resnet34")])
def test_the_model_is_torchvisions_with_another_stem(blocks: list[int], name: str) -> None:
    torch.manual_seed(0)
    theirs = getattr(torchvision.models, name)(num_classes=7)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    ours = SplitResNet([3, 32, 32], 7, blocks, 64, "layer4", "batch")
    weights = {f"{'decoder' if key.startswith('fc') else 'encoder'}.{key}": v for key, v in theirs.state_dict().items()}
    assert ours.load_state_dict(weights, strict=False).missing_keys == ["normalise.mean", "normalise.deviation"]
    images = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(images), theirs(images))


def test_a_split_on_a_residual_path_has_convolutions_around_it() -> None:
    sizes = ResNetSizes([1, 1, 1], 8, "layer2", "group")
    model = SplitResNet([16, 16], 5, [1, 1, 1], 8, "layer2", "group")
    assert model.sizes == sizes
    assert [name for name, _ in model.encoder.named_children()][-2:] == ["layer2", "before"]
    assert [name for name, _ in model.decoder.named_children()] == ["after", "layer3", "pool", "flatten", "fc"]
    images = torch.zeros(2, 1, 16, 16)
    assert model.encoder(images).shape == (2, 16, 8, 8) and model(images).shape == (2, 5)
    assert build_decoder(sizes, 3, 5)(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_images_are_normalised_by_channel() -> None:
    model = SplitResNet([3, 6, 6], 2, [1], 8, "layer1")
    images = torch.randn(40, 3, 6, 6) * torch.tensor([1.0, 2.0, 3.0])[:, None, None] + 5
    model.normalise.fit(images)
    done = model.normalise(images)
    torch.testing.assert_close(done.mean((0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(done.std((0, 2, 3)), torch.ones(3))


@pytest.mark.parametrize("flip", [False, True])
def test_augmentation_is_torchvisions_on_each_image(flip: bool) -> None:
    images = torch.randn(20, 3, 6, 5)
    torch.manual_seed(1)
    ours = augmented(images, Augmentation(2, flip))
    torch.manual_seed(1)
    moves = torch.randint(0, 5, (2, 20, 1)).flatten(1).tolist()
    flips = (torch.rand(20, 1) < 0.5).flatten().tolist() if flip else [False] * 20
    assert len(set(zip(*moves, strict=True))) > 5 and (not flip or 0 < sum(flips) < 20)
    for image, changed, down, right, flipped in zip(images, ours, *moves, flips, strict=True):
        padded = one_image.pad(image, [2, 2, 2, 2], fill=-1.0)
        cut = one_image.crop(padded, down, right, 6, 5)
        assert torch.equal(changed, one_image.horizontal_flip(cut) if flipped else cut)
    assert torch.equal(augmented(images, Augmentation()), images)


def test_sgd_is_torchs_with_momentum_and_weight_decay(tmp_path: Path) -> None:
    task = Classification(config(tmp_path, "trainer.momentum=0.7", "trainer.weight_decay=0.01"))
    objective = task.objective()
    program = Single(objective, task.config.trainer, nullcontext, None)
    weight: Any = task.model.get_submodule("decoder.fc").get_parameter("weight")
    value, buffer = weight.detach().clone(), torch.zeros_like(weight)
    for step in range(3):
        program.set_rates([0.1])
        program.gradients([task.batch(torch.arange(step * 8, step * 8 + 8))])
        buffer = 0.7 * buffer + (weight.grad + 0.01 * value)
        value = value - 0.1 * buffer
        program.update()
        torch.testing.assert_close(weight.detach(), value)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [[], ["model.norm=batch", "model.split=layer1"]], ids=str)
@pytest.mark.rendered
def test_a_run_says_what_it_did_and_its_claims_hold(tmp_path: Path, changes: list[str]) -> None:
    if changes:
        changes = [*changes, "routing.regions.top.units='0:4'", "routing.regions.bottom.units='4:8'"]
    run = made(tmp_path, *changes, "steps=[train,certify,ablate,evaluate,report]")
    assert [claim for claim in claims_of(run, replay="all") if not claim.holds] == []
    rows = [row for row in read_metrics(run) if row["metric"] == "accuracy"]
    heads = {(row["head"], row["region"]) for row in rows}
    regions = {(head, region) for head in ("certificate", "fresh_certificate", "decoder_ablated")
               for region in ("top", "bottom")}  # fmt: skip
    assert heads == {("decoder", "all"), *regions} and all(0 <= row["value"] <= 1 for row in rows)
    plots = {path.stem for path in (run / "plots").glob("*.png")}
    assert {"accuracy_per_label", "confusion", "training_curves", "ledger", "mask", "encoding_encoder@1"} <= plots
    html = (run / "report.html").read_text()
    assert "Accuracy of the certificate of top" in html
    assert ("so every group had a pass of its own" if changes else "Group norm looks at one image") in html
    assert html.count("<img") == 6 and html.index("<img") < html.index("<table")  # the figure that leads the page
    assert read_names(run, {"files": {}, "state": "running"})["classes"] == 10


def test_a_model_is_read_back_and_names_the_same_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path, STEPS)
    task, loaded = Classification(config(tmp_path)), load(run)
    right = (loaded.model(task.test_images).argmax(1) == task.data.test_labels).float().mean()
    final = [row for row in read_metrics(run) if (row["head"], row["metric"]) == ("decoder", "accuracy")]
    counts = [int((task.test_groups == i).sum()) for i in range(2)]
    means = [[row["value"] for row in final if row["group"] == name][-1] for name in task.names]
    assert float(right) == pytest.approx(sum(n * m for n, m in zip(counts, means, strict=True)) / 64, abs=1e-6)
    assert float(loaded.model.get_buffer("normalise.mean").abs().min()) > 0.1  # fitted, and kept with the weights
    compare([str(run)], form="csv", out=tmp_path / "comparison")
    assert "certificate,bottom,classes_0_4" in capsys.readouterr().out
    assert not (tmp_path / "comparison" / "stages.png").exists()  # only language models have it


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 6])
def test_a_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """With augmentation, momentum and batch statistics: interrupted in the training, and in certifying."""
    changes = [STEPS, "checkpoint.minutes=0", "task.augment.flip=true", "model.norm=batch"]
    whole = made(tmp_path / "whole", *changes)
    own = config(tmp_path / "cut", *changes)
    (cut,) = interrupted(monkeypatch, [own], number)
    assert execute([own], folder=cut) == [cut]
    for name in ("metrics.csv", "ledger.csv", "model.safetensors", "summary.json", "samples.npz"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def quadrants(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return noise `(number, 64)` with one bright quadrant, and the quadrant's number as label."""
    labels = torch.arange(number) % 4
    images = torch.rand(number, 8, 8) * 0.6 - 1
    for image, label in zip(images, labels.tolist(), strict=True):
        image[4 * (label // 2) :, 4 * (label % 2) :][:4, :4] += 1
    return images.flatten(1), labels


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_a_toy_is_learned_and_split_where_it_is_routed(tmp_path: Path, norm: str) -> None:
    """A certificate predicts its own group's labels, and the other's by chance; without routes, both or neither."""
    torch.manual_seed(0)
    (train, train_labels), (test, test_labels) = quadrants(256), quadrants(64)
    data = Images(train, train_labels, test, test_labels, "class", (8, 8), 4, "toy")
    changes = [
        f"model.norm={norm}",
        "routing.groups.classes_0_4.labels=[0,1]", "routing.groups.classes_5_9.labels=[2,3]",
        "trainer.optimizer=adam", "trainer.momentum=0", "trainer.lr=0.005", "trainer.epochs=40", "task.augment=null",
        "losses.l1.top=0.05", "losses.l1.bottom=0.05", "trainer.weight_decay=0",
    ]  # fmt: skip
    found = []
    for routes in ([], ["routing=class_none"]):
        task = Classification(config(tmp_path, *changes, *routes), data)
        order = torch.Generator().manual_seed(0)
        training = Training("toy", task.objective(), task.batch, 256, task.config.trainer, order)
        Fit([training], "float32", task.device).run()
        measured = [row for row in task.measure([]) if row[2] == "accuracy" and row[0] in task.names]
        found.append({(group, head.region): value for group, head, _, value in measured})
    routed, control = found
    low, high = task.names
    assert min(routed[low, "all"], routed[high, "all"], routed[low, "top"], routed[high, "bottom"]) > 0.9
    assert max(routed[high, "top"], routed[low, "bottom"]) < 0.7
    assert all(abs(control[low, region] - control[high, region]) < 0.2 for region in ("all", "top", "bottom"))


@pytest.mark.slow
def test_the_published_experiment_runs_on_images_of_its_kind(tmp_path: Path) -> None:
    """ResNet-34's stages, of one block each, on coloured images of a hundred classes, in bfloat16."""
    changes = ["experiment=cifar100_split", "trainer=smoke", *hundred_classes(tmp_path), "trainer.precision=bfloat16"]
    changes += ["trainer.device=cpu", f"output_dir={tmp_path}"]
    (run,) = execute([configuration(changes)])
    assert isinstance(run, Path), run
    final = read_metrics(run)
    assert {row["group"] for row in final if row["metric"] == "accuracy"} == {
        "classes_0_49", "classes_50_99", *(f"class_{label}" for label in range(100))
    }  # fmt: skip
    weights = [row for row in final if row["metric"] == "l1"]
    assert len(weights) == 2 and (run / "plots" / "accuracy_per_label.png").is_file()


@pytest.mark.parametrize("ablation", ["mean", "resample", "reinitialise", "zero"])
def test_every_ablation_is_measured(tmp_path: Path, ablation: str) -> None:
    run = made(tmp_path, f"ablation={ablation}", "trainer.epochs=1", STEPS.replace("certify,", ""))
    assert [claim for claim in claims_of(run) if not claim.holds] == []


def test_the_shorthand_for_partitions_knows_the_encoding(tmp_path: Path) -> None:
    made_of = config(tmp_path, "split.groups=[[0,1,2],[3,4,5,6,7,8,9]]", "split.units=[4,12]")
    regions = made_of.routing.regions
    assert {name: (region.axis, region.units) for name, region in regions.items()} == {
        "for_digits_0_2": (1, "0:4"), "for_digits_3_9": (1, "4:16"),
    }  # fmt: skip


MISTAKES = [
    (["model.split=layer5"], "unknown value of model.split: 'layer5'; did you mean layer"),
    (["model.width=15"], "model.width=15: must be a multiple of 8"),
    (["model.blocks=[]"], "model.blocks=[]: must be a list of 1 to 8"),
    (["model.norm=layer"], "unknown value of model.norm: 'layer'"),
    (["routing.regions.bottom.units='8:17'"], "unit 16 is out of range; units go from 0 to 15"),
    (["routing.regions.bottom.axis=3"], "unit 15 is out of range; units go from 0 to 13"),
    (["routing.groups.classes_5_9.labels=[5,6,7,8,9,10]"], "unknown label in routing.groups.classes_5_9.labels: '10'"),
    (["dataset=cifar10", "dataset.root=/nonexistent"],
     "dataset=cifar10: no readable cifar-10-batches-py files in /nonexistent"),
    (["dataset.format=strips"], "dataset.root=None: must be a folder with dataset.format=strips"),
    (["dataset.format=folders", "dataset.root=x"],
     "unknown value of dataset.format: 'folders'; valid: torchvision, strips"),
    (["task.augment.crop=-1"], "task.augment.crop=-1: must be from 0"),
    (["trainer.momentum=1"], "trainer.momentum=1.0: must be from 0 to 0.9999"),
    (["trainer.optimizer=adam"], "trainer.momentum=0.9: must be 0 unless trainer.optimizer=sgd"),
    (["stack=2"], "stack=2: cannot be used with model gradroute.models.resnet.SplitResNet"),
    (["model.decoders=2"], "unknown key 'model.decoders'; SplitResNet takes: blocks, width, split, norm"),
    (["routing.regions.top.site=decoder.fc", "routing.regions.top.units='0:5'"], "not (height, width, units)"),
    (["model.width=16384", "trainer.batch_size=64"], "model.width=16384: "),
    (["split.groups=[[0],[1]]", "model.split=layer3"], "did you mean layer"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError) as error:
        (end,) = execute([config(tmp_path, *changes)])
        raise end if isinstance(end, Exception) else AssertionError("nothing was refused")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_only_a_classifier_has_is_refused_elsewhere(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"unknown key 'task.augment'; Reconstruction takes: none"):
        configuration(["task.augment.crop=1"])
