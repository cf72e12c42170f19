"""Keep the weights of the epoch at which a labeller saw the best returns; the true returns play no part."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradroute.training.weights import own_tensors


class EarlyStopping:
    """The weights of a model at its best epoch so far, in a module of their own, `kept`.

    The training itself goes on; once `patience` epochs have brought nothing better, the choice is final.
    """

    def __init__(self, model: nn.Module, kept: nn.Module, patience: int) -> None:
        self.model, self.kept, self.patience = model, kept, patience
        self.best, self.epoch = float("-inf"), 0

    @torch.no_grad()
    def see(self, epoch: int, value: float) -> None:
        """Compare what a labeller saw in an epoch, counted from 1, with the best epoch so far."""
        if value > self.best and epoch - self.epoch <= self.patience:
            self.best, self.epoch = value, epoch
            own = own_tensors(self.model)
            for name, tensor in own_tensors(self.kept).items():
                tensor.copy_(own[name])

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint, which has the weights among the task's."""
        return {"best": self.best, "epoch": self.epoch}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.best, self.epoch = float(state["best"]), int(state["epoch"])
