"""What the training loop makes: an objective, its data, their order, and callbacks."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from gradroute.config.schema import TrainerConfig
from gradroute.routing import ParameterRouter
from gradroute.training.objectives import Batch, Objective, Term
from gradroute.training.order import batches
from gradroute.training.private import Noise, drawn

Rows = tuple[torch.Tensor, torch.Tensor]  # numbers of the rows of a batch, on the CPU and on the device


class Stateful(Protocol):
    """An object whose state is saved in checkpoints."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state, of plain data and tensors."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state."""
        ...


@dataclass
class Training:
    """One training: an objective, its data, their order, and callbacks.

    title: its name while it runs.
    objective: called with a batch, returns `Terms`; all of its parameters are trained.
    batch: takes the row numbers `(batch,)` of data points, on the device, and returns the objective's arguments.
    points: the number of data points.
    trainer: the resolved configuration.
    order: a CPU generator, which alone determines the order of the data.
    on_epoch: called with the epoch (from 1), the number of updates so far, and each term's mean over the epoch.
    before_update: called with the number of updates so far, the objective's arguments, and the row numbers that they
        were made of, on the CPU.
    parameter_router: weighs the terms' gradients by their group, and freezes what no group in the batch may touch.
    group_index: group numbers `(points,)` if each batch is to hold one group.
    compiled: whether to compile the model, or `auto`, see `gradroute.training.compiling`.
    shared: whether all processes of a run train it together, see `gradroute.training.distributed`.
    watcher: further state that changes at every update and belongs in a checkpoint.
    diverged: called with the error if a loss is not finite, after which the run goes on; None lets it fail.
    noise: makes the updates those of DP-SGD, see `gradroute.training.private`.
    source: what makes the batches, if its state changes with them.
    """

    title: str
    objective: Objective
    batch: Callable[[torch.Tensor], tuple[torch.Tensor, ...]]
    points: int
    trainer: TrainerConfig
    order: torch.Generator
    on_epoch: Callable[[int, int, dict[Term, float]], None] = lambda epoch, step, means: None
    before_update: Callable[[int, Batch, torch.Tensor], None] = lambda step, batch, rows: None
    parameter_router: ParameterRouter | None = None
    group_index: torch.Tensor | None = None
    compiled: bool | str = False
    shared: bool = False
    watcher: Stateful | None = None
    noise: Noise | None = None
    diverged: Callable[[FloatingPointError], None] | None = None
    source: Stateful | None = None

    def kind(self) -> Hashable:
        """Return what decides which operations the next update consists of; None if one cannot stand for another."""
        objective, routed = self.objective, self.parameter_router
        if objective.there is not None:  # cut at other rows each time
            return None
        if self.noise is not None or (routed is not None and routed.measure):  # its norms are new tensors each time
            return None
        kinds = objective.router.kind if objective.router else (), routed.kind if routed else ()
        return *kinds, objective.monitor is not None, objective.present, objective.program is not None

    def batches(self, order: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield the row numbers of an epoch's batches."""
        if self.noise is not None:
            return drawn(self.points, self.trainer.batch_size, order)
        return batches(self.points, self.trainer.batch_size, order, self.group_index)


@contextmanager
def tried(trainings: Sequence[Training]) -> Iterator[None]:
    """Undo what passes of these trainings inside the block change besides gradients.

    That is the state of what makes their batches, buffers such as those of batch norm, random numbers, and which groups
    a parameter router has seen.
    """
    sources = [(t.source, deepcopy(t.source.state_dict())) for t in trainings if t.source is not None]
    buffers = [(buffer, buffer.clone()) for t in trainings for buffer in t.objective.buffers()]
    with torch.random.fork_rng():
        yield
    for source, state in sources:
        source.load_state_dict(state)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
    for training in trainings:
        if training.parameter_router is not None:
            training.parameter_router.forget()
