"""A user's own models: default certificates, training and evaluation mode, and batch norm."""

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.models.base import HIDDEN, certificate_of
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.base import create
from gradroute.tasks.images import ImageTask

SMALL = ["trainer=smoke", "trainer.device=cpu", "trainer.train_limit=192", "trainer.test_limit=64",
         "trainer.batch_size=64", "losses.correlation=0"]  # fmt: skip
STEPS = "steps=[train,certify,ablate,evaluate]"


class Noisy(nn.Module):
    """An autoencoder without its own certificates, with layers that differ in training: batch norm and dropout."""

    flat_inputs = True

    def __init__(self, shape: Sequence[int], width: int = 8) -> None:
        super().__init__()
        pixels = shape[0] * shape[1]
        self.encoder = nn.Sequential(nn.Linear(pixels, width), nn.BatchNorm1d(width), nn.Dropout(0.5))
        self.decoder = nn.Linear(width, pixels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.decoder(self.encoder(images))
        return made


class Normed(nn.Module):
    """An autoencoder with batch norm after its encoding, where images of a batch then depend on each other."""

    flat_inputs = True

    def __init__(self, shape: Sequence[int], width: int = 8) -> None:
        super().__init__()
        pixels = shape[0] * shape[1]
        self.encoder = nn.Linear(pixels, width)
        self.decoder = nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, pixels))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.decoder(self.encoder(images))
        return made


def plain_classifier(shape: Sequence[int], classes: int, width: int = 8) -> nn.Module:
    """Return a classifier: a convolution to `width` channels, and a linear layer."""
    side = shape[0] // 4 * (shape[1] // 4)
    layers: OrderedDict[str, nn.Module] = OrderedDict(encoder=nn.Conv2d(1, width, 4, stride=4), act=nn.ReLU())
    return nn.Sequential(layers | OrderedDict(flat=nn.Flatten(), out=nn.Linear(width * side, classes)))


class Named(nn.Module):
    """A model that makes its own certificates."""

    def certificate(self, seen: Sequence[int], outputs: int) -> nn.Module:
        return nn.Linear(seen[-1], outputs)


class NoMethod(nn.Module):
    """A model whose attribute `certificate` is not a method."""

    certificate = "none"


@pytest.mark.parametrize("seen", [(4,), (3, 5, 4)])
def test_a_model_without_its_own_gets_a_perceptron_with_one_hidden_layer(seen: tuple[int, ...]) -> None:
    units = 4 if len(seen) == 1 else 60
    for model in (nn.Linear(2, 2), NoMethod()):
        made: Any = certificate_of(model, seen, 7)
        shapes = {name: tuple(parameter.shape) for name, parameter in made.named_parameters()}
        assert shapes == {
            "linear0.weight": (HIDDEN, units), "linear0.bias": (HIDDEN,),
            "linear1.weight": (7, HIDDEN), "linear1.bias": (7,),
        }  # fmt: skip
        x = torch.randn(6, *seen)
        hidden = (x.reshape(6, units) @ made.linear0.weight.T + made.linear0.bias).clamp(min=0)
        torch.testing.assert_close(made(x), hidden @ made.linear1.weight.T + made.linear1.bias)
    assert isinstance(certificate_of(Named(), (4,), 7), nn.Linear)


def config(kind: str, folder: Path) -> Config:
    """Configure a run of a user's own model of 8 units, split in two halves, in a folder of configurations."""
    (folder / "conf" / "model").mkdir(parents=True)
    (folder / "conf" / "model" / "own.yaml").write_text(f"_target_: test_own_models.{kind}\n")
    axis = -1
    given = [*SMALL, f"output_dir={folder / 'outputs'}", STEPS, "model=own"]
    if kind == "plain_classifier":
        axis, given = 1, ["experiment=class_split", *given, "dataset=mnist", "task.augment=null"]
        given += ["trainer.optimizer=adam", "trainer.momentum=0"]
    for name, units in (("top", "0:4"), ("bottom", "4:8")):
        given.append(f"++routing.regions.{name}={{site: encoder, units: '{units}', axis: {axis}}}")
    return configuration(given, folder / "conf")


@pytest.mark.parametrize("kind", ["Noisy", "plain_classifier"])
def test_a_model_of_ones_own_is_certified_and_read_back_with_its_certificates(tmp_path: Path, kind: str) -> None:
    """The measurements match those of the loaded model and certificates, without noise of the training mode."""
    given = config(kind, tmp_path)
    (run,) = execute([given])
    assert isinstance(run, Path), run
    assert [claim for claim in claims_of(run, run_code=True) if not claim.holds] == []
    with pytest.raises(UserError, match="run_code=True"):
        load(run)
    loaded, task = load(run, run_code=True), create(given)
    assert isinstance(task, ImageTask) and set(loaded.certificates) == {"top", "bottom"}
    assert {type(each) for each in loaded.certificates.modules()} >= {nn.Flatten, nn.ReLU}
    metric = "accuracy" if task.classifies else "mse"
    rows = [row for row in read_metrics(run) if (row["split"], row["metric"]) == ("test", metric)]
    final = {(row["head"], row["region"], row["group"]): row["value"] for row in rows}
    fresh = {key for key in final if key[0] == "fresh_certificate"}
    assert {region for _, region, _ in fresh} == {"top", "bottom"}
    with torch.no_grad():
        z = loaded.model.get_submodule("encoder")(task.test_images)
        z = z.movedim(1, -1) if z.dim() > 2 else z
        made = {"all": loaded.model(task.test_images), "top": loaded.certificates["top"](z[..., :4])}
        made["bottom"] = loaded.certificates["bottom"](z[..., 4:])
    for number, group in enumerate(task.names):
        own = task.test_groups == number
        for head, region in (("decoder", "all"), ("certificate", "top"), ("certificate", "bottom")):
            output, target = made[region][own], task.targets(train=False)[own]
            each = (output.argmax(1) == target).float() if task.classifies else (output - target).square().mean(1)
            assert final[head, region, group] == pytest.approx(float(each.mean()), rel=1e-5), (head, region, group)


def test_norms_and_dropout_act_in_the_training_alone(tmp_path: Path) -> None:
    task = create(config("Noisy", tmp_path))
    objective, batch, norm = task.objective(), task.batch(torch.arange(32)), task.model.get_submodule("encoder.1")
    modes = [module.training for module in task.model.modules()]
    before = norm.get_buffer("running_mean").clone()
    losses = {float(sum(value.item() for value, _ in objective(*batch).values())) for _ in range(4)}
    assert len(losses) == 4 and not torch.equal(before, norm.get_buffer("running_mean"))
    assert not any(modes) and not any(module.training for module in task.model.modules())
    measured = [list(task.measure([])) for _ in range(2)]
    assert measured[0] == measured[1]


@pytest.mark.slow
def test_batch_norm_lets_no_loss_past_its_groups_mask(tmp_path: Path) -> None:
    """With one pass for each group, its loss has no gradient in the other units, not even through other images."""
    task = create(config("Normed", tmp_path))
    objective: Any = task.objective()
    batch = task.batch(torch.arange(64))
    weight = task.model.get_submodule("encoder").get_parameter("weight")
    found = {}
    for several in (True, False):
        objective.several_passes = several
        terms = objective(*batch)
        (value,) = [value for term, (value, _) in terms.items() if (term.head, term.group) == ("decoder", "digits_0_4")]
        (found[several],) = torch.autograd.grad(value, weight)
    assert float(found[True][4:].abs().max()) == 0.0 < float(found[True][:4].abs().max())
    assert float(found[False][4:].abs().max()) > 0.0  # what one pass of the whole batch would let through


@pytest.mark.parametrize("change", ["trainer.accumulate=2", "trainer.compile=true"])
def test_batch_norm_of_ones_own_is_not_taken_in_parts(tmp_path: Path, change: str) -> None:
    given = config("Normed", tmp_path)
    key, _, value = change.partition("=")
    setattr(given.trainer, key.partition(".")[2], int(value) if value.isdigit() else True)
    with pytest.raises(UserError, match=f"{key}=.*batch norm"):
        create(given)


def test_a_model_named_in_place_of_the_selected_one_gets_its_own_arguments_only(tmp_path: Path) -> None:
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    model = "{_target_: test_own_models.plain_classifier, width: 4}"
    lines = ["# @package _global_", "defaults: [class_split]", "name: mine", f"model: {model}"]
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text("\n".join(lines) + "\n")
    regions = [f"routing.regions.{name}.units={units}" for name, units in (("top", "0:2"), ("bottom", "2:4"))]
    expected = {"_target_": "test_own_models.plain_classifier", "width": 4}
    assert configuration(["experiment=mine", *regions], tmp_path / "conf").model == expected
    assert configuration(["experiment=class_split", f"model={model}", *regions]).model == expected
    changed = configuration(["experiment=mine", "model.width=6", *regions], tmp_path / "conf")
    assert changed.model == expected | {"width": 6}
