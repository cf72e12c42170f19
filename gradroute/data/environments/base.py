"""The interface of environments: many worlds at once, as tensors."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch

UNFINISHED = "unfinished"  # the ending of a step whose episode has not ended in the batch
CONTINUES = -1  # in place of the number of an ending


class Environment(ABC):
    """An environment with discrete actions. The constructor's arguments are its configuration.

    A world that ends is replaced by a new one at once, so that every step of every world can be trained on.

    Attributes:
        shape: of an observation, without the batch axis. actions: their number.
        endings: names of the ways in which an episode can end, other than `UNFINISHED`.
        continues: whether worlds last from one batch to the next; otherwise each batch begins with new ones, which need
            no place in a checkpoint.
    """

    shape: Sequence[int]
    actions: int
    endings: Sequence[str]
    continues: bool = True

    @abstractmethod
    def begin(self, count: int, seed: int, device: torch.device) -> None:
        """Begin `count` new worlds; the seed alone determines all that is random in them from now on."""

    @abstractmethod
    def observe(self) -> torch.Tensor:
        """Return what is seen of every world now, `(count, *shape)` float32."""

    @abstractmethod
    def step(self, actions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Act in every world, `(count,)`; return the numbers of the endings, or `CONTINUES`, and the rewards."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state of all worlds, of plain data and tensors."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027  # nothing to do without a state
        """Restore what `state_dict` returned."""

    def pictures(self) -> Mapping[str, Any]:
        """Return numbers for the report, such as exact ceilings; empty if none are known."""
        return {}
