"""Runs of version 0.1, whose configurations named kinds instead of components, are read as today's are."""

import shutil
from pathlib import Path

import pytest
import torch

from gradroute.commands.python import open_run
from gradroute.comparison.compare import compare
from gradroute.comparison.runs import read_run
from gradroute.running.verify import claims_of

FOLDER = Path(__file__).parent / "version_0_1"
RUNS = sorted(path.name for path in FOLDER.iterdir())
TARGETS = {
    "autoencoder": ("gradroute.data.images.torchvision.MNIST", "gradroute.models.autoencoder.Autoencoder"),
    "classifier": ("gradroute.data.images.torchvision.MNIST", "gradroute.models.resnet.SplitResNet"),
    "language": ("gradroute.data.text.datasets.ToyStories", "gradroute.models.transformer.build_transformer"),
}


@pytest.mark.parametrize("name", RUNS)
def test_every_claim_about_the_run_holds(name: str) -> None:
    assert not [claim for claim in claims_of(FOLDER / name) if not claim.holds]


@pytest.mark.parametrize("name", RUNS)
def test_its_configuration_names_components(name: str) -> None:
    config = open_run(FOLDER / name).config
    assert (config["dataset"]["_target_"], config["model"]["_target_"]) == TARGETS[name]


@pytest.mark.parametrize("name", RUNS)
def test_it_is_loaded_with_its_weights(name: str) -> None:
    run = open_run(FOLDER / name)
    parameters = list(run.model.parameters())
    assert parameters and all(bool(p.isfinite().all()) and not bool((p == 0).all()) for p in parameters if p.ndim > 1)
    assert len(run.metrics) and len(run.ledger) and len(run.summary)


def test_the_sizes_that_it_named_are_those_of_the_model() -> None:
    run = open_run(FOLDER / "autoencoder")
    with torch.no_grad():
        assert run.model.get_submodule("encoder")(torch.zeros(1, 784)).shape == (1, 4)
    assert list(run.certificates) == ["top", "bottom"]


def test_it_is_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(FOLDER / "autoencoder", tmp_path / "old")
    made = open_run(FOLDER / "autoencoder").config
    assert read_run(tmp_path / "old").settings["model.encoding"] == made["model"]["encoding"] == 4
    compare([str(tmp_path / "old")], form="csv")
    assert "certificate" in capsys.readouterr().out
