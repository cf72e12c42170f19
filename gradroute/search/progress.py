"""What a pilot has made so far: kept in the folder of its mask, so that the same command goes on with it."""

import time
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.run_folder import CHECKPOINTS
from gradroute.search.found import Evidence
from gradroute.training.states import read_state, save_state
from gradroute.training.weights import own_tensors, read_weights

MODEL = "model"


class Progress:
    """The evidence that a pilot has, and its model's weights after the unrouted training.

    Args:
        of: what the pilot is made with. model: gets the weights of the last checkpoint, if there is one.
        minutes: between checkpoints, at least.

    Attribute: `evidence`, of every candidate; None before the unrouted training has ended.

    Raises: UserError if the folder's checkpoint is damaged, or of another pilot.
    """

    def __init__(self, folder: Path, of: str, model: nn.Module, minutes: float) -> None:
        self.folder, self.of, self.model, self.minutes = folder, of, model, minutes
        self.evidence: list[Evidence] | None = None
        self._saved = time.monotonic()
        found = checkpoints.newest(folder)
        if found is None:
            return
        state = read_state(found)
        if state.get("of") != of:
            fault = "has a pilot of other settings that was interrupted"
            raise UserError(f"{folder}: {fault}; set another search.name=, or delete the folder")
        read_weights(folder, {MODEL: model}, name=f"{found.name}/{checkpoints.WEIGHTS}")
        self.evidence = [Evidence(**one) for one in state["evidence"]]
        torch.set_rng_state(state["random"])

    def save(self) -> None:
        """Write a checkpoint, if the last one is old enough; the model must have its weights after the training."""
        assert self.evidence is not None
        if time.monotonic() - self._saved < 60 * self.minutes:
            return
        state = {"of": self.of, "evidence": [asdict(one) for one in self.evidence], "random": torch.get_rng_state()}
        weights = {f"{MODEL}.{name}": tensor for name, tensor in own_tensors(self.model).items()}
        checked = sum(one.whole is not None for one in self.evidence)
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        save_state(self.folder, str(checked), state, weights)
        self._saved = time.monotonic()
