"""Random crops and flips of a whole batch on its device, each image by itself."""

from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F

from gradroute.config.limits import Between

DARKEST = -1.0  # of pixels in [-1, 1]


@dataclass(frozen=True)
class Augmentation:
    """How training images are changed, each by itself and every time anew.

    crop: pixels by which an image may be moved; the gap is filled with the darkest value. flip: mirror every second
    image, chosen at random.
    """

    crop: Annotated[int, Between(0, 64)] = 0
    flip: bool = False


def augmented(images: torch.Tensor, config: Augmentation) -> torch.Tensor:
    """Images `(batch, channels, height, width)`, each moved by up to `config.crop` pixels and perhaps flipped.

    torchvision's `RandomCrop` draws one move for a whole batch. Ours are drawn by the CPU's generator, which a run
    saves in its checkpoints, so that every device sees the same ones.
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
