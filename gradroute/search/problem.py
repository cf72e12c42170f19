"""The problem that a mask is found for: its data, groups and model, checked, without a mask."""

import math
from dataclasses import replace
from typing import ClassVar

import torch

from gradroute.config.auto import LEAST
from gradroute.config.components import with_steps
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.search.signals import rows_of
from gradroute.tasks.base import Task, create


def bare(config: Config) -> Config:
    """Return a configuration that trains the model of another without regions, routes, penalties and later steps."""
    routing = replace(config.routing, regions={}, routes={}, auto=None)
    alone = replace(config.losses, certificates=[], l1={}, correlation=0.0, penalties=[])
    trainer = replace(config.trainer, compile=False)
    ablation = {**config.ablation, "region": None}
    return replace(
        with_steps(config, ["train"]), routing=routing, losses=alone, trainer=trainer, ablation=ablation, privacy=None,
        completions=None,
    )  # fmt: skip


class Problem:
    """A configuration's data, groups and model.

    Args:
        points: data points of each group to use, at most.

    Attributes: `task`, without routes; `rows`, row numbers of each group; `whole`, the updates of a run.

    Raises: UserError for fewer than two groups, a group of fewer than 32 examples, or a task that makes its own data.
    """

    least_groups: ClassVar[int] = 2

    def __init__(self, config: Config, points: int) -> None:
        self.config = config
        if len(config.routing.groups) < self.least_groups:
            names = list(config.routing.groups)
            raise UserError(f"routing.groups={names}: must be two or more, which a mask can keep apart")
        if config.environment is not None:
            raise UserError("environment: a policy makes its own data, and has no groups to find a mask for")
        self.task: Task = create(bare(config))
        self.rows = [rows_of(self.task, number, points, config.seed) for number in range(len(self.task.names))]
        for name, own in zip(self.task.names, self.rows, strict=True):
            if len(own) < LEAST:
                right = f"{LEAST} or more, from whose gradients a mask can be found"
                raise UserError(f"routing.groups.{name}: has {len(own)} labelled examples; must be {right}")
        self.whole = config.trainer.epochs * math.ceil(self.task.points / config.trainer.batch_size)

    @property
    def counts(self) -> list[float]:
        """The number of training points, or tokens, of each group."""
        return [float((self.task.routed == number).sum()) for number in range(len(self.rows))]

    def example(self) -> torch.Tensor:
        """Return one data point to call the model on."""
        return self.task.example()[:1]
