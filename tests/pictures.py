"""Make images of random pixels, and write them to files."""

from pathlib import Path

import torch
from PIL import Image


def pictures(number: int, *shape: int) -> torch.Tensor:
    """Return random pixels `(number, *shape)`, uint8."""
    return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def write_png(pixels: torch.Tensor, path: Path) -> None:
    """Write pixels `(channels, height, width)`, creating missing folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Return the pixels of images `(number, …)` as a data set gives them: flat, in [-1, 1]."""
    return pixels.flatten(1).float() / 127.5 - 1
