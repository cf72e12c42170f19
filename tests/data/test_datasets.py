"""MNIST from inside the package: canonical, repaired when damaged, safe when two runs start together."""

import gzip
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gradroute.config.schema import DatasetConfig
from gradroute.data.images import load as datasets
from gradroute.errors import UserError


def test_mnist_is_whole_and_scaled() -> None:
    data = datasets.load(DatasetConfig("mnist"))
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
    data = datasets.load(DatasetConfig("mnist"), train_limit=7, test_limit=3)
    assert data.train_labels.tolist() == [5, 0, 4, 1, 9, 2, 1] and len(data.test_images) == 3


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_cache_is_repaired(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str) -> None:
    monkeypatch.setenv("GRADROUTE_DATA", str(tmp_path))
    datasets.unpack_mnist(tmp_path)
    victim = tmp_path / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    good = victim.read_bytes()
    if damage == "delete":
        victim.unlink()
    else:
        victim.write_bytes(good[:-100] if damage == "truncate" else good[:-1] + bytes([good[-1] ^ 1]))
    datasets.unpack_mnist(tmp_path)
    assert victim.read_bytes() == good
    assert sorted(p.name for p in victim.parent.iterdir()) == sorted(datasets.MNIST_SHA256)


def test_processes_that_start_together_share_one_cold_cache(tmp_path: Path) -> None:
    code = f"from gradroute import datasets; from pathlib import Path; datasets.unpack_mnist(Path({str(tmp_path)!r}))"
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(4)]
    assert [process.wait(timeout=120) for process in processes] == [0] * 4
    for name, sha256 in datasets.MNIST_SHA256.items():
        assert datasets._sha256(tmp_path / "MNIST" / "raw" / name) == sha256


def test_a_damaged_package_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets, "PACKAGED", tmp_path)
    with pytest.raises(UserError, match=r"ubyte\.xz: the packaged data file is missing or damaged"):
        datasets.unpack_mnist(tmp_path / "cache")


def test_a_given_folder_must_hold_intact_files(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is missing"):
        datasets.load(DatasetConfig("mnist", str(tmp_path)))
    datasets.unpack_mnist(tmp_path)
    (tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(b"x")
    with pytest.raises(UserError, match="is damaged"):
        datasets.load(DatasetConfig("mnist", str(tmp_path)))


def test_an_unwritable_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        datasets.unpack_mnist(tmp_path / "file")


@pytest.mark.parametrize(("name", "folder"), [("fashion_mnist", "FashionMNIST"), ("kmnist", "KMNIST")])
def test_relatives_are_read_from_a_given_folder(tmp_path: Path, name: str, folder: str) -> None:
    raw = tmp_path / folder / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 20), ("t10k", 10)):
        images = bytes(i % 256 for i in range(count * 784))
        for stem, header, body in (
            ("images-idx3", struct.pack(">IIII", 2051, count, 28, 28), images),
            ("labels-idx1", struct.pack(">II", 2049, count), bytes(i % 10 for i in range(count))),
        ):
            (raw / f"{part}-{stem}-ubyte").write_bytes(header + body)
            (raw / f"{part}-{stem}-ubyte.gz").write_bytes(gzip.compress(header + body))
    data = datasets.load(DatasetConfig(name, str(tmp_path)))
    assert data.train_images.shape == (20, 784) and data.label_noun == "class"
    assert torch.equal(data.test_labels, torch.arange(10))


def test_a_relative_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        datasets.load(DatasetConfig("kmnist", str(tmp_path)))
    assert "dataset=kmnist" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UserError, match="unknown dataset 'mnst'; did you mean mnist"):
        datasets.load(DatasetConfig("mnst"))


def test_metadata_comes_with_the_images_or_is_refused(tmp_path: Path) -> None:
    for name, images in (("train", 60_000), ("test", 10_000)):
        lines = ["writer,page", *(f"w{i % 7},{i}" for i in range(images))]
        (tmp_path / f"{name}.csv").write_text("\n".join(lines) + "\n")
    data = datasets.load(DatasetConfig(metadata=str(tmp_path)), train_limit=10, test_limit=3)
    assert data.train_columns["writer"][:8] == ["w0", "w1", "w2", "w3", "w4", "w5", "w6", "w0"]
    assert data.test_columns == {"writer": ["w0", "w1", "w2"], "page": ["0", "1", "2"]}
    (tmp_path / "test.csv").write_text("writer\nw1\n")
    with pytest.raises(UserError, match=r"test\.csv: 1 lines for 10000 images"):
        datasets.load(DatasetConfig(metadata=str(tmp_path)))
    with pytest.raises(UserError, match="cannot be read"):
        datasets.load(DatasetConfig(metadata="/nonexistent"))
