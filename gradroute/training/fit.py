"""The training loop, for any objectives that return named terms: one alone, or several in lockstep."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any

import torch

from gradroute.errors import UserError
from gradroute.routing.memberships import Later, checked_later
from gradroute.training import distributed
from gradroute.training.capture import Captured
from gradroute.training.compiling import compiled, compiled_update
from gradroute.training.determinism import affordable, exactly
from gradroute.training.devices import computing
from gradroute.training.gradients import Single, culprit
from gradroute.training.history import EpochTerms, UpdateTerms
from gradroute.training.objectives import Batch, Term
from gradroute.training.order import learning_rate
from gradroute.training.private import Private
from gradroute.training.stack import Stack
from gradroute.training.training import Rows, Training, tried


def _named(term: Term) -> str:
    return f"the {term.head} {term.metric} of group {term.group}, region {term.region}"


@dataclass
class Fit:
    """The training loop, which minimises terms over shuffled batches; the last, smaller batch is kept.

    An update reads the batch, the rates and the routes' weights where they were put before, and is captured as a CUDA
    graph on a GPU (`trainer.graph`, see `gradroute.training.capture`).

    Several trainings run in lockstep as one batched program, each with its own initialisation, order of data and
    optimizer state; they may differ in numbers only (see `gradroute.training.stacking`).

    `precision`: see `gradroute.training.devices.pick_precision`. `failed`: the errors of trainings, by number, whose
    losses or gradients became infinite or nan, or that `fail` was called for; the others of a stack continue. `exact`:
    whether a rerun agrees to the bit; None until `run` finds out by `trainer.deterministic`. `log`: told what is
    decided, in one line. `measuring`: a context around the evaluations after an epoch.
    """

    trainings: Sequence[Training]
    precision: str
    device: torch.device
    epoch: int = 0  # finished epochs
    update: int = 0  # updates made in this epoch
    step: int = 0  # updates made
    failed: dict[int, Exception] = field(default_factory=dict)
    exact: bool | None = None
    log: Callable[[str], None] = lambda line: None
    measuring: Callable[[], AbstractContextManager[object]] = nullcontext
    _later: Later | None = None
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
        graph = self.device.type == "cuda" and first.trainer.graph is not False
        self.made = Captured(self._make, self.device, graph, self.log)
        self._seen = self._record()

    def run(self, after_update: Callable[[], None] = lambda: None) -> None:
        """Train to the last epoch; call `after_update` after every update.

        Raises: FloatingPointError, naming the term, if every training has failed: at once on a CPU, on other devices
            at the end of the epoch, since a check at every update would make them wait.
        """
        first = self.trainings[0]
        if self.exact is None:
            self.exact = self._decided()
        with (
            exactly(self.exact and self.device.type != "cpu"),
            self._compiled() if first.compiled else nullcontext(),
            distributed.in_step() if first.shared else nullcontext(),
            checked_later(self.device, self._later) as self._later,
        ):
            self._epochs(after_update, self._later)
        self.check_parameters()

    @contextmanager
    def _compiled(self) -> Iterator[None]:
        """Compile the model, unless it is that of a stack, and where it pays the losses and the updates."""
        first, tried = self.trainings[0], self.trainings[0].compiled == "auto"
        alone, routed = len(self.trainings) == 1, first.parameter_router is not None
        pays = self.device.type == "cuda" and not routed and first.noise is None
        with (
            compiled(first.objective, tried, self.log, routed) if alone else nullcontext(),
            compiled_update(self.program, tried, self.log) if pays else nullcontext(),
        ):
            yield

    def _decided(self) -> bool:
        """Return whether this training is to agree with a rerun to the bit; see `trainer.deterministic`."""
        asked = self.trainings[0].trainer.deterministic
        exact = self.device.type == "cpu" or asked is True
        if self.device.type == "cuda" and asked == "auto":
            with tried(self.trainings):
                rows = [next(t.batches(torch.Generator())).to(self.device) for t in self.trainings]
                data = [training.batch(own) for training, own in zip(self.trainings, rows, strict=True)]
                finish = partial(torch.cuda.synchronize, self.device)
                exact, found = affordable(lambda: self.program.gradients(data), finish)
            agrees = "to the bit" if exact else "to rounding"
            self.log(f"trainer.deterministic=auto: {found}; a rerun agrees {agrees}")
        return exact

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
            with self.measuring():
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
        try:
            data = [training.batch(rows) for training, (_, rows) in zip(self.trainings, chosen, strict=True)]
        except UserError as error:  # a policy makes its data now
            raise UserError(f"update {self.step}, epoch {self.epoch + 1}: {error}") from error
        for training, batch, (rows, _) in zip(self.trainings, data, chosen, strict=True):
            training.before_update(self.step, batch, rows)
        terms = self.made(data, self._kind())
        if self.device.type != "cpu":
            self._add(terms)
        self.update, self.step = self.update + 1, self.step + 1

    def _make(self, data: Sequence[Batch]) -> UpdateTerms:
        """Compute gradients and change the parameters; on a CPU, stop between them if a number is not finite."""
        terms = self.program.gradients(data)
        if self.device.type == "cpu":
            self._add(terms)
            self._check(self.update, data)
        self.program.update()
        return terms

    def _kind(self) -> Hashable:
        """Return what decides which operations the next update consists of; None if it cannot be captured."""
        kinds = [training.kind() for training in self.trainings]
        return None if None in kinds or distributed.share()[1] > 1 else tuple(kinds)

    def _add(self, terms: UpdateTerms) -> None:
        self._seen.add(terms, [training.objective.absent for training in self.trainings])

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
        position, every = {"epoch": self.epoch, "update": self.update, "step": self.step}, self.program.moments()
        return [
            {
                **position,
                "order": start,
                "seen": self._seen.state(number),
                "moments": every[number],
                "watcher": training.watcher.state_dict() if training.watcher else {},
                "source": training.source.state_dict() if training.source else {},
            }
            for number, (training, start) in enumerate(zip(self.trainings, self._starts, strict=True))
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
