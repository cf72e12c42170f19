"""The training loop, for any objectives that return named terms: one alone, or several in lockstep."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Protocol

import torch

from gradroute.config.schema import TrainerConfig
from gradroute.routing import ParameterRouter
from gradroute.routing.memberships import Later, checked_later
from gradroute.training import distributed
from gradroute.training.compiling import compiled
from gradroute.training.devices import computing
from gradroute.training.gradients import Single, culprit
from gradroute.training.history import EpochTerms
from gradroute.training.objectives import Batch, Objective, Term
from gradroute.training.order import batches, learning_rate
from gradroute.training.private import Noise, Private, drawn
from gradroute.training.stack import Stack


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
    compiled: whether to compile the model, see `gradroute.training.compiling`.
    shared: whether all processes of a run train it together, see `gradroute.training.distributed`.
    watcher: further state that changes at every update and belongs in a checkpoint.
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
    compiled: bool = False
    shared: bool = False
    watcher: Stateful | None = None
    noise: Noise | None = None
    source: Stateful | None = None

    def batches(self, order: torch.Generator) -> Iterator[torch.Tensor]:
        """Yield the row numbers of an epoch's batches."""
        if self.noise is not None:
            return drawn(self.points, self.trainer.batch_size, order)
        return batches(self.points, self.trainer.batch_size, order, self.group_index)


def _named(term: Term) -> str:
    return f"the {term.head} {term.metric} of group {term.group}, region {term.region}"


@dataclass
class Fit:
    """The training loop, which minimises terms over shuffled batches; the last, smaller batch is kept.

    Several trainings run in lockstep as one batched program, each with its own initialisation, order of data and
    optimizer state; they may differ in numbers only (see `gradroute.training.stacking`).

    `precision`: see `gradroute.training.devices.pick_precision`. `failed`: the errors of trainings, by number, whose
    losses or gradients became infinite or nan, or that `fail` was called for; the others of a stack continue.
    """

    trainings: Sequence[Training]
    precision: str
    device: torch.device
    epoch: int = 0  # finished epochs
    update: int = 0  # updates made in this epoch
    step: int = 0  # updates made
    failed: dict[int, Exception] = field(default_factory=dict)
    _starts: list[torch.Tensor] = field(default_factory=list)  # states of `order` at the start of this epoch

    def __post_init__(self) -> None:
        first, trainers = self.trainings[0], [training.trainer for training in self.trainings]
        self.program: Single | Stack
        self.computing = partial(computing, self.precision, self.device)
        if len(self.trainings) == 1 and first.noise is not None:
            self.program = Private(first.objective, first.trainer, self.computing, first.noise)
        elif len(self.trainings) == 1:
            self.program = Single(first.objective, first.trainer, self.computing, first.parameter_router)
        else:
            self.program = Stack([training.objective for training in self.trainings], trainers, self.computing)
        self.updates = sum(1 for _ in first.batches(torch.Generator()))  # per epoch
        self.steps = first.trainer.epochs * self.updates
        self._seen = self._record()

    def run(self, after_update: Callable[[], None] = lambda: None) -> None:
        """Train to the last epoch; call `after_update` after every update.

        Raises: FloatingPointError, naming the term, if every training has failed: at once on a CPU, on other devices
            at the end of the epoch, since a check at every update would make them wait.
        """
        first = self.trainings[0]
        with (
            compiled(first.objective) if first.compiled else nullcontext(),
            distributed.in_step() if first.shared else nullcontext(),
            checked_later(self.device) as memberships,
        ):
            self._epochs(after_update, memberships)
        self.check_parameters()

    def _epochs(self, after_update: Callable[[], None], memberships: Later) -> None:
        while self.epoch < self.trainings[0].trainer.epochs:
            self._starts = [training.order.get_state() for training in self.trainings]
            plans = [self._planned(training) for training in self.trainings]
            for rows in islice(zip(*plans, strict=True), self.update, None):
                self._update(rows)
                after_update()
            if self.device.type != "cpu":  # on a CPU, every update was checked
                memberships.check()
                for update in range(len(self._seen)):
                    self._check(update)
            means, self._seen = self._seen.means(), self._record()
            self.epoch, self.update = self.epoch + 1, 0
            for number, (training, own) in enumerate(zip(self.trainings, means, strict=True)):
                if number not in self.failed:
                    training.on_epoch(self.epoch, self.step, own)

    def _planned(self, training: Training) -> list[Rows]:
        """Return the row numbers of an epoch's batches, on the CPU and, copied there in one piece, on the device."""
        chosen = list(training.batches(training.order))
        if self.device.type == "cpu":
            return [(rows, rows) for rows in chosen]
        there = torch.cat(chosen).to(self.device).split([len(rows) for rows in chosen])
        return list(zip(chosen, there, strict=True))

    def _update(self, chosen: Sequence[Rows]) -> None:
        """Make one optimizer update of every training. Nothing here waits for the device, unless it is a CPU."""
        self.program.set_rates([learning_rate(training.trainer, self.step, self.steps) for training in self.trainings])
        data = [training.batch(rows) for training, (_, rows) in zip(self.trainings, chosen, strict=True)]
        for training, batch, (rows, _) in zip(self.trainings, data, chosen, strict=True):
            training.before_update(self.step, batch, rows)
        self._seen.add(self.program.gradients(data))
        if self.device.type == "cpu":
            self._check(self.update, data)
        self.program.update()
        self.update, self.step = self.update + 1, self.step + 1

    def _record(self) -> EpochTerms:
        return EpochTerms(self.program.terms, self.updates, len(self.trainings), self.device, self.program.absent)

    def _check(self, update: int, data: Sequence[Batch] = ()) -> None:
        """Record the trainings where a term of an update of this epoch, or its gradient, is not finite.

        `data`: the update's batches, if it is the current one.
        """
        for number, fault in self._seen.faults(update).items():
            if fault:
                what = f"{_named(fault[0])} is {fault[1]}"
            else:
                term = self._culprit(number, data[number]) if data else None
                what = f"the gradient of {_named(term) if term else 'the loss'} is not finite"
            self._diverged(number, self.epoch * self.updates + update, what)

    def _culprit(self, number: int, batch: Batch) -> Term | None:
        training = self.trainings[number]
        return culprit(training.objective, batch, training.trainer.accumulate, self.computing)

    def check_parameters(self) -> None:
        """Record trainings with a parameter that is not finite, which must not be saved. Raises: FloatingPointError."""
        for number, training in enumerate(self.trainings):
            if not all(bool(parameter.isfinite().all()) for parameter in training.objective.parameters()):
                self._diverged(number, self.step, "a parameter is not finite")

    def _diverged(self, number: int, step: int, what: str) -> None:
        advice = f"lower trainer.lr (now {self.trainings[number].trainer.lr})"
        self.fail(number, FloatingPointError(f"update {step}, epoch {self.epoch + 1}: {what}; {advice}"))

    def fail(self, number: int, error: Exception) -> None:
        """Leave a training out from now on; raise the first training's error if no other is left."""
        self.failed.setdefault(number, error)
        if len(self.failed) == len(self.trainings):
            raise self.failed[0]

    def states(self) -> list[dict[str, Any]]:
        """Return the state of every training after an update, without its parameters, for `load_states`."""
        position = {"epoch": self.epoch, "update": self.update, "step": self.step}
        return [
            position
            | {
                "order": start,
                "seen": self._seen.state(number),
                "moments": moments,
                "watcher": training.watcher.state_dict() if training.watcher else {},
                "source": training.source.state_dict() if training.source else {},
            }
            for number, (training, start, moments) in enumerate(
                zip(self.trainings, self._starts, self.program.moments(), strict=True)
            )
        ]

    def load_states(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore what `states` returned, for trainings that were all at one update."""
        self.epoch, self.update, self.step = (states[0][key] for key in ("epoch", "update", "step"))
        self._seen.load([state["seen"] for state in states])
        self.program.set_moments([state["moments"] for state in states])
        for training, state in zip(self.trainings, states, strict=True):
            training.order.set_state(state["order"].cpu())
            if training.watcher:
                training.watcher.load_state_dict(state["watcher"])
            if training.source:
                training.source.load_state_dict(state["source"])
