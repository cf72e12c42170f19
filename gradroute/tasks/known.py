"""What is known on the CPU of the training data's groups, so that no update has to ask the device."""

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch


class Known:
    """Group numbers of the training data by row.

    Args:
        routed: group numbers, `(points,)` or one per token, -1 for none.
        groups: the number of groups.
        counted: bool, as `routed`: what a loss is computed on; all if None.
    """

    def __init__(self, routed: torch.Tensor, groups: int, counted: torch.Tensor | None = None) -> None:
        self.numbers, self.groups = routed.detach().clone().cpu(), groups
        self._counted = counted

    @cached_property
    def there(self) -> torch.Tensor:
        """Whether each row has each group, the default one last, where a loss is computed, `(points, groups + 1)`."""
        counted = torch.ones_like(self.numbers, dtype=torch.bool) if self._counted is None else self._counted.cpu()
        own = [(self.numbers % (self.groups + 1) == number) & counted for number in range(self.groups + 1)]
        return torch.stack([rows.flatten(1).any(1) if rows.dim() > 1 else rows for rows in own], 1)


def absent(there: torch.Tensor, names: Sequence[str]) -> frozenset[str]:
    """Return which of these names of the groups, the default one last, no row of `there` `(rows, groups + 1)` has."""
    return frozenset(name for name, here in zip(names, there.any(0).tolist(), strict=True) if not here)


class Routed:
    """Base class of tasks: what they know on the CPU of their data's groups.

    Attributes:
        acts: whether the groups follow from how a model acts, so that nothing is known.
        routed, names: see `gradroute.tasks.base.Task`.
        counted: bool, as `routed`: what a loss is computed on; None for all.
    """

    acts: ClassVar[bool] = False
    routed: torch.Tensor
    names: list[str]
    counted: torch.Tensor | None = None

    @cached_property
    def known(self) -> Known | None:
        """The batches' groups, without asking the device; None if they follow from how a model acts."""
        return None if self.acts else Known(self.routed, len(self.names), self.counted)
