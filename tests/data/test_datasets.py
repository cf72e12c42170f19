"""MNIST from inside the package: canonical, repaired when damaged, safe when two runs start together."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradroute.config.doors import TARGET
from gradroute.config.targets import build
from gradroute.data.images import packaged
from gradroute.data.images.packaged import MNIST_SHA256, unpack_mnist
from gradroute.data.images.torchvision import KMNIST, MNIST, FashionMNIST, TorchvisionImages
from gradroute.errors import UserError
from gradroute.records.atomic import sha256_of


def test_mnist_is_whole_and_scaled() -> None:
    data = MNIST().tensors()
    assert data.train_images.shape == (60000, 784) and data.test_images.shape == (10000, 784)
    assert data.train_labels.bincount().tolist() == [
        5923,
        6742,
        5958,
        6131,
        5842,
        5421,
        5918,
        6265,
        5851,
        5949,
    ]
    assert float(data.train_images.min()) == -1 and float(data.train_images.max()) == 1
    assert data.labels == list(range(10)) and data.label_noun == "digit"


def test_limits_keep_the_first_images() -> None:
    data = MNIST().tensors(train_limit=7, test_limit=3)
    assert data.train_labels.tolist() == [5, 0, 4, 1, 9, 2, 1] and len(data.test_images) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_cache_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("GRADROUTE_DATA", str(tmp_path))
    unpack_mnist(tmp_path)
    victim = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    good = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(good[:-100] if damage == "truncate" else good[:-1] + bytes([good[-1] ^ 1]))
    unpack_mnist(tmp_path)
    assert victim.read_bytes() == good
    assert sorted(p.name for p in victim.parent.iterdir()) == sorted(MNIST_SHA256)


def test_processes_that_start_together_share_one_cold_cache(tmp_path: Path) -> None:
    code = f"from gradroute.data.images.packaged import *; unpack_mnist(Path({str(tmp_path)!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    for name, sha256 in MNIST_SHA256.items():
        assert sha256_of(tmp_path / "MNIST" / "raw" / name) == sha256


def test_a_damaged_package_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packaged, "PACKAGED", tmp_path)
    with pytest.raises(UserError, match=r"ubyte\.xz: the packaged data file is missing or damaged"):
        unpack_mnist(tmp_path / "cache")


def test_a_given_folder_must_hold_intact_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        MNIST(str(tmp_path)).tensors()
    unpack_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        MNIST(str(tmp_path)).tensors()


def test_mnist_needs_no_cache_that_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file stands for such a folder: root, who may run the tests, can write to every folder."""
    whole = MNIST().tensors(100, 100)
    (tmp_path / "file").write_text("")
    (tmp_path / "temporary").mkdir()
    monkeypatch.setenv("GRADROUTE_DATA", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert not unpack_mnist(tmp_path / "file")
    found = MNIST().tensors(100, 100)
    assert found.sha256 == whole.sha256 and torch.equal(found.train_images, whole.train_images)
    assert not list((tmp_path / "temporary").iterdir()) and (tmp_path / "file").read_text() == ""


def test_a_machine_without_any_folder_to_write_to_is_told_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged, "unpack_mnist", lambda root: False)
    with pytest.raises(UserError, match="cannot be written; set GRADROUTE_DATA to a writable folder"):
        MNIST().tensors()


@pytest.mark.parametrize("kind", [FashionMNIST, KMNIST])
def test_relatives_are_read_from_a_given_folder(tmp_path: Path, kind: type[FashionMNIST | KMNIST]) -> None:
    raw = tmp_path / kind.__name__ / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images = bytes(i % 256 for i in range(count * 784))
        for stem, header, body in (
            ("images-idx3", struct.pack(">IIII", 2051, count, 28, 28), images),
            ("labels-idx1", struct.pack(">II", 2049, count), bytes(i % 10 for i in range(count))),
        ):
            (raw / f"{part}-{stem}-ubyte").write_bytes(header + body)
            (raw / f"{part}-{stem}-ubyte.gz").write_bytes(gzip.compress(header + body))
    data = kind(str(tmp_path)).tensors()
    assert data.train_images.shape == (20, 784) and data.label_noun == "class"
    assert torch.equal(data.test_labels, torch.arange(10))


def test_a_relative_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        KMNIST(str(tmp_path)).tensors()
    assert "dataset=kmnist" in str(error.value) and "\n" not in str(error.value)
    named = f"{TorchvisionImages.__module__}.TorchvisionImages"
    with pytest.raises(UserError, match=r"unknown value of dataset\.name: 'mnst'; did you mean mnist"):
        build({TARGET: named, "name": "mnst"}, "dataset")


def test_metadata_comes_with_the_images_or_is_refused(tmp_path: Path) -> None:
    for name, images in (("train", 60_000), ("test", 10_000)):
        lines = ["writer,page", *(f"w{i % 7},{i}" for i in range(images))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    data = MNIST(metadata=str(tmp_path)).tensors(train_limit=10, test_limit=3)
    assert data.train_columns["writer"][:8] == ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w0"]
    assert data.test_columns == {"writer": ["w0", "w1", "w2"], "page": ["0", "1", "2"]}
    (tmp_path / "test.csv").write_text("writer\nw1\n")
    with pytest.raises(UserError, match=r"test\.csv: 1 lines for 10000 images"):
        MNIST(metadata=str(tmp_path)).tensors()
    with pytest.raises(UserError, match="cannot be read"):
        MNIST(metadata="/nonexistent").tensors()
