"""Buffer loss terms on the device, and copy them to the host once per epoch, or on request."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from gradroute.training.objectives import Term


@dataclass(frozen=True)
class UpdateTerms:
    """The terms of one update: `numbers` `(terms, tasks)`, and `sound`, whether gradients are finite, `(tasks,)`."""

    terms: tuple[Term, ...]
    numbers: torch.Tensor
    sound: torch.Tensor


class EpochTerms:
    """The terms of an epoch's updates, in one block of memory.

    One small tensor for each update would fragment the memory: a run of a thousand updates grew by a gigabyte.

    Args:
        terms: every term that an update can have.
        absent: terms that a task of a stack lacks, each with the task's number.
    """

    def __init__(
        self, terms: Iterable[Term], updates: int, tasks: int, device: torch.device,
        absent: frozenset[tuple[Term, int]] = frozenset(),
    ) -> None:  # fmt: skip
        self.terms, self.absent = tuple(terms), absent
        self._place = {term: place for place, term in enumerate(self.terms)}
        self._numbers = torch.zeros(updates, len(self.terms), tasks, device=device)
        self._sound = torch.ones(updates, tasks, dtype=torch.bool, device=device)
        self._had: list[list[tuple[Term, ...]]] = []  # by update and task
        self._rows: dict[tuple[Term, ...], torch.Tensor] = {}  # the places of terms, on the device

    def __len__(self) -> int:
        return len(self._had)

    def add(self, values: UpdateTerms, absent: Sequence[Collection[str]] | None = None) -> None:
        """Add the terms of an update; `absent`: each task's groups without a data point there, which have no loss."""
        row = self._numbers[len(self)]
        if values.terms == self.terms:
            row.copy_(values.numbers)
        else:
            if values.terms not in self._rows:
                places = [self._place[term] for term in values.terms]
                self._rows[values.terms] = torch.tensor(places, device=row.device)
            row.index_copy_(0, self._rows[values.terms], values.numbers.to(row.dtype))
        self._sound[len(self)] = values.sound
        self._had.append([
            tuple(t for t in values.terms if (t, task) not in self.absent and not (absent and t.group in absent[task]))
            for task in range(self._numbers.shape[2])
        ])  # fmt: skip

    def by_task(self, update: int) -> list[dict[Term, float]]:
        """Return each task's terms of an update; waits for the device."""
        tasks = self._numbers[update].T.tolist()
        return [{t: own[self._place[t]] for t in had} for own, had in zip(tasks, self._had[update], strict=True)]

    def faults(self, update: int) -> dict[int, tuple[Term, float] | None]:
        """Return each faulty task's first term that is not finite, with its value, by task; waits for the device.

        None stands for finite values of which only a gradient is not finite.
        """
        if bool(self._numbers[update].isfinite().all()) and bool(self._sound[update].all()):
            return {}
        wrong = [[(t, v) for t, v in own.items() if not math.isfinite(v)] for own in self.by_task(update)]
        return {
            number: found[0] if found else None
            for number, (found, sound) in enumerate(zip(wrong, self._sound[update].tolist(), strict=True))
            if found or not sound
        }

    def means(self) -> list[dict[Term, float]]:
        """Return the mean of each task's terms over the updates that had them; waits for the device."""
        found: list[dict[Term, list[float]]] = [{} for _ in range(self._numbers.shape[2])]
        for update in range(len(self)):
            for own, values in zip(self.by_task(update), found, strict=True):
                for term, value in own.items():
                    values.setdefault(term, []).append(value)
        return [{term: sum(values) / len(values) for term, values in own.items()} for own in found]

    def state(self, task: int) -> dict[str, Any]:
        """Return one task's part, for a checkpoint."""
        return {
            "terms": [astuple(term) for term in self.terms],
            "given": [[self._place[t] for t in had[task]] for had in self._had],
            "numbers": self._numbers[: len(self), :, task].clone(),
        }

    def load(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Restore every task's `state`."""
        updates = len(states[0]["given"])
        every = [[Term(*names) for names in state["terms"]] for state in states]
        for update in range(updates):
            self._had.append([])
            for task, (state, terms) in enumerate(zip(states, every, strict=True)):
                self._had[-1].append(tuple(terms[place] for place in state["given"][update]))
                for place in state["given"][update]:
                    self._numbers[update, self._place[terms[place]], task] = state["numbers"][update, place]
