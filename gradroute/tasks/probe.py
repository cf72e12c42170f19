"""What a task trains besides its model, and what it measures."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gradroute.config.schema import TrainerConfig
from gradroute.tasks.evaluation import Head
from gradroute.training.objectives import Batch, Objective

Measurement = tuple[str, Head, str, float]  # group or label, head, metric, value


@dataclass(frozen=True)
class Probe:
    """What to train: an objective, its data and its settings.

    Attributes:
        batch: maps row numbers `(batch,)`, on the device, to the objective's arguments.
        points: number of data points; the task's if None.
        trainer: settings of the training; the configuration's if None.
    """

    title: str
    objective: Objective
    batch: Callable[[torch.Tensor], Batch]
    points: int | None = None
    trainer: TrainerConfig | None = None
