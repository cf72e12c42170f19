"""How far the finding of a mask has come: kept in the mask's folder, so that the same command goes on with it."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.run_folder import CHECKPOINTS
from gradroute.training.states import read_state, save_state


class Progress:
    """Checkpoints in a mask's folder, with the state of torch's random numbers.

    Args:
        of: what the mask is made with; a checkpoint of anything else is refused.
        fault: what is said of a folder with such a checkpoint, and what would be right.
        minutes: between checkpoints, at least.
    """

    def __init__(self, folder: Path, of: str, fault: str, minutes: float) -> None:
        self.folder, self.of, self.fault, self.minutes = folder, of, fault, minutes
        self._saved = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is so old that another is to be written."""
        return time.monotonic() - self._saved >= 60 * self.minutes

    def save(self, position: int, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> None:
        """Write a checkpoint; `position` counts what is done."""
        (self.folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
        whole = {**state, "of": self.of, "random": torch.get_rng_state()}
        save_state(self.folder, str(position), whole, weights)
        self._saved = time.monotonic()

    def read(self, device: torch.device | str = "cpu") -> tuple[str, dict[str, Any]] | None:
        """Return the name of the last checkpoint's weights in the folder, and its state; None if there is none.

        Raises: UserError if it is damaged, or of something else.
        """
        found = checkpoints.newest(self.folder)
        if found is None:
            return None
        state = read_state(found, device)
        if state.get("of") != self.of:
            raise UserError(f"{self.folder}: {self.fault}")
        torch.set_rng_state(state["random"].cpu())
        return f"{found.name}/{checkpoints.WEIGHTS}", state
