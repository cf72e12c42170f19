"""Tables: every group's weights at a site, and each data point's row or mix of rows."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from gradroute.routing.mask import WHOLE, keeping


@dataclass(eq=False)
class Table:
    """Weights and forward factors at a site, `(groups + 1, units)`; the last row, all 1, is the default route."""

    weight: torch.Tensor
    forward: torch.Tensor
    moved: tuple[tuple[int, ...], ...] = ((), ())  # groups whose row of `weight`, and of `forward`, may differ from 1
    zeros: bool = True  # whether a weight may be 0
    hard: bool = False  # whether all weights are 0 or 1
    kept: Mapping[int, torch.Tensor] = field(default_factory=dict)  # `keeping` by bytes of a number, if known

    def keep(self, size: int) -> torch.Tensor:
        """Return where gradients do not become 0, for numbers of `size` bytes; a forward factor of 0 makes them 0."""
        return self.kept[size] if self.kept else self.keeping(size)

    def keeping(self, size: int) -> torch.Tensor:
        """Compute what `keep` returns from the current values."""
        return keeping(self.weight * (self.forward != 0) if self.forwarded else self.weight, size)

    def settle(self, weight: torch.Tensor, forward: torch.Tensor) -> None:
        """Take new values, given on the CPU, and note what is known of them, once for all passes.

        They are written in place: a compiled model, and a captured update, read the same addresses as before.
        """
        self.moved = tuple(
            tuple(group for group, row in enumerate(rows) if bool((row != 1).any())) for rows in (weight, forward)
        )
        self.weight.copy_(weight)
        self.forward.copy_(forward)
        self.zeros = bool((weight * forward == 0).any())
        self.hard = bool(((weight == 0) | (weight == 1)).all())
        if not self.zeros:
            self.kept = {}
        elif self.kept:
            for size, kept in self.kept.items():
                kept.copy_(self.keeping(size))
        else:
            self.kept = {size: self.keeping(size) for size in WHOLE}

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which operations a pass consists of; two updates of one kind differ in values only."""
        return self.moved, self.zeros, self.hard, *(kept.data_ptr() for kept in self.kept.values())

    @property
    def routed(self) -> bool:
        """Whether any gradient is weighted."""
        return bool(self.moved[0])

    @property
    def forwarded(self) -> bool:
        """Whether any activation is multiplied by a factor."""
        return bool(self.moved[1])


def rows_of(table: torch.Tensor, membership: torch.Tensor, moved: tuple[int, ...]) -> torch.Tensor:
    """Return each data point's row, or mix of rows: `(units,)`, `(batch, units)` or `(batch, tokens, units)`.

    moved: the groups whose rows may differ from 1.
    """
    membership = membership.to(table.device)
    if not membership.is_floating_point():
        return table[membership]
    rows = torch.ones_like(table[-1])
    for group in moved:
        rows = rows + membership[..., group, None].to(table.dtype) * (table[group] - 1)
    return rows
