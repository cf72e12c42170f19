"""Images of random pixels, and files of them."""

from pathlib import Path

import torch
from PIL import Image


def pictures(number: int, *shape: int) -> torch.Tensor:
    """Random pixels `(number, *shape)` uint8."""
    return torch.randint(0, 256, (number, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))


def write_png(pixels: torch.Tensor, path: Path) -> None:
    """Write `(channels, height, width)`, and the folders around it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).squeeze(2).numpy()).save(path)


def scaled(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels of images `(number, …)` as a data set gives them."""
    return pixels.flatten(1).float() / 127.5 - 1
