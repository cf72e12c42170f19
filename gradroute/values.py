"""The terms of one update of several tasks, on their device until somebody looks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

import torch

from gradroute.losses import Term


@dataclass
class Values:
    """The terms of one update, `numbers` `(terms, tasks)`; a task that has no such term is in `absent` with it.

    `sound` `(tasks,)`: whether the task's gradients were found to be finite.
    """

    terms: tuple[Term, ...]
    numbers: torch.Tensor
    sound: torch.Tensor
    absent: frozenset[tuple[Term, int]] = frozenset()

    @classmethod
    def of(cls, tasks: Sequence[Mapping[Term, float]]) -> "Values":
        """The same from what `by_task` gave."""
        terms = tuple(dict.fromkeys(term for own in tasks for term in own))
        numbers = torch.tensor([[own.get(term, 0.0) for own in tasks] for term in terms], dtype=torch.float64)
        absent = frozenset((t, i) for i, own in enumerate(tasks) for t in terms if t not in own)
        return cls(terms, numbers, torch.ones(len(tasks), dtype=torch.bool), absent)

    def by_task(self) -> list[dict[Term, float]]:
        """Each task's terms; waits for the device."""
        tasks = self.numbers.T.tolist()
        return [
            {term: v for term, v in zip(self.terms, own, strict=True) if (term, i) not in self.absent}
            for i, own in enumerate(tasks)
        ]

    def faults(self) -> dict[int, tuple[Term, float] | None]:
        """Each faulty task's first value that is not finite, with its term, by its number; waits for the device.

        None where the values are finite and only a gradient is not.
        """
        if bool(self.numbers.isfinite().all()) and bool(self.sound.all()):
            return {}
        wrong = [[(term, v) for term, v in own.items() if not math.isfinite(v)] for own in self.by_task()]
        return {
            number: found[0] if found else None
            for number, (found, sound) in enumerate(zip(wrong, self.sound.tolist(), strict=True))
            if found or not sound
        }


def packed(seen: Sequence[Mapping[Term, float]]) -> dict[str, Any]:
    """One task's terms of several updates as names and a table `(updates, terms)`, nan where an update had none."""
    terms = list(dict.fromkeys(term for own in seen for term in own))
    table = [[own.get(term, math.nan) for term in terms] for own in seen]
    return {"terms": [astuple(term) for term in terms], "table": torch.tensor(table, dtype=torch.float64)}


def unpacked(state: Mapping[str, Any]) -> list[dict[Term, float]]:
    """What was `packed`."""
    terms = [Term(*names) for names in state["terms"]]
    return [
        {term: value for term, value in zip(terms, row, strict=True) if not math.isnan(value)}
        for row in state["table"].tolist()
    ]
