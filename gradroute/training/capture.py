"""Capture updates as CUDA graphs and replay them: on a GPU, to launch an update's kernels takes longer than they do.

An update is a function of tensors at fixed addresses. What it reads is written there before: the batch, the learning
rate, the weights of the routes. What it makes is read when the epoch ends. On a CPU the same function is called.
"""

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.training.history import UpdateTerms
from gradroute.training.objectives import Batch

WARM = 3  # updates of a kind before it is captured; they make what is made once, such as the optimizer's state
LARGEST = 16  # kinds that are captured; each keeps the memory of one update

Update = Callable[[Sequence[Batch]], UpdateTerms]


@dataclass(frozen=True)
class _Graph:
    """A captured update: the batches that it reads, in place, and the terms that it fills, in place."""

    graph: Any
    data: Sequence[Batch]
    terms: UpdateTerms


def capture(update: Update, data: Sequence[Batch], pool: Any) -> _Graph:
    """Capture an update that reads copies of these batches; nothing is computed. `pool`: memory that graphs share."""
    held = [tuple(tensor.clone() for tensor in batch) for batch in data]
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        terms = update(held)
    return _Graph(graph, held, terms)


class Captured:
    """An update that is captured once for each kind of batch, and then replayed.

    Args:
        update: computes the gradients of one batch for each training, makes the update, and returns the terms.
        device: of the trainings.
        log: told, in one line, why an update could not be captured; from then on all are made as they are.

    Attribute: `on`, whether updates are captured.
    """

    def __init__(self, update: Update, device: torch.device, on: bool, log: Callable[[str], None]) -> None:
        self.update, self.device, self.on, self.log = update, device, on, log
        self._graphs: dict[Hashable, _Graph] = {}
        self._made = Counter[Hashable]()
        self._pool: Any = None
        self._side: Any = None

    def __call__(self, data: Sequence[Batch], kind: Hashable) -> UpdateTerms:
        """Make an update. `kind`: what decides, beside the shapes, which operations it consists of; None: any."""
        if not self.on or kind is None:
            return self.update(data)
        key = kind, tuple((tensor.shape, tensor.dtype) for batch in data for tensor in batch)
        if key not in self._graphs:
            self._made[key] += 1
            if self._made[key] <= WARM or len(self._graphs) >= LARGEST or not self._capture(key, data):
                return self._aside(data) if self.on else self.update(data)
        found = self._graphs[key]
        for held, given in zip(found.data, data, strict=True):
            for place, tensor in zip(held, given, strict=True):
                place.copy_(tensor)
        found.graph.replay()
        return found.terms

    def _aside(self, data: Sequence[Batch]) -> UpdateTerms:
        """Make an update as it is, on a stream of its own: what is made here must not belong to the default stream."""
        if self._side is None:
            self._side = torch.cuda.Stream(self.device)
        now = torch.cuda.current_stream(self.device)
        self._side.wait_stream(now)
        with torch.cuda.stream(self._side):
            terms = self.update(data)
        now.wait_stream(self._side)
        return terms

    def _capture(self, key: Hashable, data: Sequence[Batch]) -> bool:
        """Capture an update; return whether it could be. A failed one has computed nothing, and is made as it is."""
        try:
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            self._graphs[key] = capture(self.update, data, self._pool)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            self.log(f"trainer.graph: updates are made one by one, since one could not be captured ({reason})")
            self.on = False
            self._graphs.clear()
        return self.on
