"""IDX files: read as torchvision reads them, or refused with what is wrong."""

import struct
from pathlib import Path

import pytest
import torch
from torchvision.datasets import mnist

from gradroute.data.images.idx import read_idx
from gradroute.data.images.packaged import content


@pytest.mark.parametrize(("kind", "dimensions"), [("images-idx3", 3), ("labels-idx1", 1)])
def test_values_are_those_that_torchvision_reads(kind: str, dimensions: int, tmp_path: Path) -> None:
    path = tmp_path / f"t10k-{kind}-ubyte"
    path.write_bytes(content(path.name))
    found = read_idx(path, dimensions)
    wanted = mnist.read_label_file(str(path)) if dimensions == 1 else mnist.read_image_file(str(path))
    assert found.dtype == torch.uint8 and found.shape == wanted.shape and torch.equal(found.long(), wanted.long())
    found += 1  # of its own memory


GOOD = struct.pack(">4I", 0x803, 2, 3, 4) + bytes(24)
BAD = {
    "empty": (b"", "is not an IDX file of bytes in 3 dimensions"),
    "another_format": (b"\x89PNG" + GOOD[4:], "is not an IDX file"),
    "of_floats": (b"\0\0\x0d\3" + GOOD[4:], "is not an IDX file of bytes"),
    "of_another_dimension": (struct.pack(">2I", 0x801, 24) + bytes(24), "in 3 dimensions"),
    "cut_in_the_header": (GOOD[:10], "is not an IDX file"),
    "cut": (GOOD[:-1], "has 23 values, and its header says 24"),
    "longer": (GOOD + b"\0", "has 25 values, and its header says 24"),
    "declares_an_exabyte": (struct.pack(">4I", 0x803, 2**30, 2**30, 1) + bytes(8), "has 8 values, and its header says"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_damaged_file_is_refused(name: str, tmp_path: Path) -> None:
    damaged, message = BAD[name]
    (tmp_path / "whole").write_bytes(GOOD)
    assert read_idx(tmp_path / "whole", 3).shape == (2, 3, 4)
    (tmp_path / "damaged").write_bytes(damaged)
    with pytest.raises(ValueError, match=message):
        read_idx(tmp_path / "damaged", 3)


def test_a_file_without_images_is_empty(tmp_path: Path) -> None:
    (tmp_path / "none").write_bytes(struct.pack(">4I", 0x803, 0, 28, 28))
    assert read_idx(tmp_path / "none", 3).shape == (0, 28, 28)
