"""Crop and flip a whole batch on its device, with random numbers for each image."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from gradroute.config.limits import Between

DARKEST = -1.0  # of pixels in [-1, 1]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of training images, drawn anew for each image in each batch.

    Attributes:
        crop: largest shift in pixels; the gap is filled with the darkest value.
        flip: mirror each image with probability 1/2.
    """

    crop: Annotated[int, Between(0, 64)] = 0
    flip: bool = False


def augmented(images: torch.Tensor, config: Augmentation) -> torch.Tensor:
    """Return images `(batch, channels, height, width)`, each shifted by up to `config.crop` pixels, perhaps flipped.

    torchvision's `RandomCrop` draws one shift for a whole batch. Here the CPU's generator draws one for each image: a
    run saves it in its checkpoints, and every device sees the same shifts.
    """
    batch, _, height, width = images.shape
    moves = torch.randint(0, 2 * config.crop + 1, (2, batch, 1)).to(images.device)
    rows, columns = moves[0] + torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    columns = moves[1] + columns
    if config.flip:
        flips = (torch.rand(batch, 1) < 0.5).to(images.device)
        columns = torch.where(flips, columns.flip(1), columns)
    padded = F.pad(images, [config.crop] * 4, value=DARKEST)
    each = torch.arange(batch, device=images.device)[:, None, None]
    return padded[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
