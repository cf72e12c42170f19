"""The learning rate of every update, and the order in which data points are trained on."""

import math
from collections.abc import Iterator

import torch

from gradroute.config.schema import PresetConfig


def learning_rate(trainer: PresetConfig, step: int, steps: int) -> float:
    """Return the rate of update `step` (from 0) of `steps`: linear warm-up; constant, or cosine to `end_rate` × lr."""
    warmup = min(1.0, (step + 1) / trainer.warmup_steps) if trainer.warmup_steps else 1.0
    cosine = 0.5 * (1 + math.cos(math.pi * step / steps)) if trainer.schedule == "cosine" else 1.0
    return trainer.lr * warmup * (trainer.end_rate + (1 - trainer.end_rate) * cosine)


def batches(
    points: int, size: int, generator: torch.Generator, group_index: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """Yield the row numbers of an epoch's shuffled batches; each of one group if `group_index` `(points,)` is given."""
    order = torch.randperm(points, generator=generator)
    if group_index is None:
        yield from order.split(size)
        return
    groups = group_index.cpu()[order]
    chunks = [chunk for group in groups.unique() for chunk in order[groups == group].split(size)]
    for i in torch.randperm(len(chunks), generator=generator).tolist():
        yield chunks[i]
