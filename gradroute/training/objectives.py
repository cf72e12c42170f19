"""Objectives: losses as named terms, so that each can be recorded, weighted and verified."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing import Monitor, Router
from gradroute.routing.monitor import Watched
from gradroute.routing.router import Tables


@dataclass(frozen=True)
class Term:
    """The identity of one measurement: its head, group, region and metric."""

    head: str
    group: str
    region: str
    metric: str


Terms = dict[Term, tuple[torch.Tensor, float | torch.Tensor]]  # value and weight of each
Batch = tuple[torch.Tensor, ...]
Part = tuple[Any, ...]  # rows of a batch, and what makes the parts' terms add up to the batch's
UNLABELLED = "unlabelled"


def group_means(
    values: torch.Tensor, group_index: torch.Tensor, groups: int, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean of `values` `(batch,)` within each group, `(groups,)`; 0 for an empty group.

    For a part of a batch, `counts` `(groups,)` are those of the whole batch.
    """
    zeros = values.new_zeros(groups)
    sums = zeros.index_add(0, group_index, values)
    counts = zeros.index_add(0, group_index, torch.ones_like(values)) if counts is None else counts
    return sums / counts.clamp(min=1)


class Objective(nn.Module):
    """Base class of objectives: called with a batch, it returns `Terms`, whose weighted sum is the loss.

    Attributes: `weights`, of every term it can return (in a stack, tensors of one replica); `router`, the routes on
    its model; `monitor`, if the next batch is to be measured; `program`, its compiled model; `programs`, what returns
    the compiled program of a loss; `present`, the numbers of the groups in the next batch, -1 for none, if that is
    known without asking the device; `there`, whether each of its rows has each group, the default one last,
    `(batch, groups + 1)` bool on the CPU, if known; `absent`, the names of groups that are known not to be in it.
    """

    model: nn.Module
    asks_present = False  # whether the loss depends on which groups are in a batch, see `present`
    divisible = False  # whether `parts` cuts a batch anywhere, so that the parts' terms add up

    def __init__(self, weights: Mapping[Term, float], router: Router | None = None) -> None:
        super().__init__()
        self.weights: Mapping[Term, float | torch.Tensor] = dict(weights)
        self.router = router
        self.monitor: Monitor | Watched | None = None
        self.program: Callable[..., torch.Tensor] | None = None
        self.programs: Callable[[Callable[..., torch.Tensor]], Callable[..., torch.Tensor]] | None = None
        self.present: frozenset[int] | None = None
        self.there: torch.Tensor | None = None
        self.absent: frozenset[str] = frozenset()
        self._constants: dict[tuple[tuple[float, ...], torch.device], torch.Tensor] = {}

    def constant(self, numbers: Sequence[float | torch.Tensor], device: torch.device) -> torch.Tensor:
        """Return numbers as a float32 tensor on a device, `(numbers,)`: always the same, copied to the device once.

        Of a replica of a stack the numbers are tensors of its own, which are put together.
        """
        if any(isinstance(number, torch.Tensor) for number in numbers):
            return torch.stack([torch.as_tensor(number, device=device) for number in numbers])
        key = tuple(map(float, numbers)), device
        if key not in self._constants:
            self._constants[key] = torch.tensor(key[0], device=device)
        return self._constants[key]

    def called(self) -> Callable[..., torch.Tensor]:
        """Return what is called with a batch, and may be compiled: the model, unless a subclass calls a part of it."""
        return self.model

    def output(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the model's output, by the compiled program unless a monitor is set, which would break it."""
        program = None if self.monitor else self.program
        output: torch.Tensor = (program or self.called())(*inputs)
        return output

    def computed(self, function: Callable[..., torch.Tensor], *inputs: Any) -> torch.Tensor:
        """Call a function of tensors that is no part of the model, such as a loss, compiled if the losses are."""
        return (self.programs(function) if self.programs else function)(*inputs)

    @contextmanager
    def set_to(self, weights: Mapping[Term, torch.Tensor], tables: Tables, monitor: Watched | None) -> Iterator[None]:
        """Use other weights, masks and monitor inside the block: those of one replica of a stack."""
        kept, self.weights, self.monitor = (self.weights, self.monitor), weights, monitor
        try:
            with self.router.using(tables) if self.router else nullcontext():
                yield
        finally:
            self.weights, self.monitor = kept

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield a batch in `number` parts, or fewer if it has fewer rows; their terms add up to the batch's.

        `number` may also say where the parts begin, except the first, if the objective is `divisible`.

        The default is one part: most losses are not sums over data points.
        """
        yield batch

    def row_scale(self, batch: Batch) -> torch.Tensor:
        """Return what makes the loss of a batch a sum over its rows, each divided by a constant and by nothing else.

        DP-SGD needs it: what a row adds to the gradient must not depend on the other rows.

        Raises: UserError for an objective that is not a mean over its rows' parts.
        """
        raise UserError(f"privacy: the loss {type(self).__name__} is no mean over rows; use task=language")


def in_parts(batch: Batch, number: int | list[int]) -> Iterator[Batch]:
    """Yield the rows of a batch in parts of nearly equal size, none of them empty, or cut where `number` says."""
    where = min(number, len(batch[0])) if isinstance(number, int) else number
    yield from zip(*(rows.tensor_split(where) for rows in batch), strict=True)


def counted_parts(batch: Batch, number: int | list[int], counts: Callable[[], torch.Tensor]) -> Iterator[Part]:
    """Yield a batch whole, or its parts, each with the batch's `counts` and its share of the rows."""
    if number == 1:
        yield batch
        return
    counted = counts()
    for part in in_parts(batch, number):
        yield (*part, counted, len(part[0]) / len(batch[0]))
