"""Write checkpoints, which hold weights and the state of everything else, and read them without executing code."""

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from gradroute.errors import UserError
from gradroute.records import safe_reading
from gradroute.records.checkpoints import STATE, WEIGHTS, Checkpoint, keep, save
from gradroute.training.weights import write_weights


def save_state(
    run: Path, position: str, state: Mapping[str, Any], weights: Mapping[str, torch.Tensor], update: int | None = None
) -> None:
    """Write a checkpoint of a run, to stay if the number of its `update` is given; see `gradroute.records.checkpoints`.

    Raises: OSError if it cannot be written.
    """
    files: dict[str, Callable[[Path], None]] = {
        WEIGHTS: lambda path: write_weights(path, weights),
        STATE: lambda path: _write_state(path, state),
    }
    if update is None:
        save(run, position, files)
    else:
        keep(run, update, position, files)


def _write_state(path: Path, state: Mapping[str, Any]) -> None:
    with path.open("wb") as file:  # given a path, torch says a full disk without an OSError
        torch.save(dict(state), file)


def read_state(checkpoint: Checkpoint, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Return all but the weights of a checkpoint. Raises: UserError if it is damaged."""
    path = safe_reading.place(checkpoint.run, f"{checkpoint.name}/{STATE}")
    try:
        with zipfile.ZipFile(path) as archive:  # torch does not compress: what is compressed could expand to any size
            if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
                raise ValueError("compressed")
        state = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # torch raises many kinds
        raise UserError(f"{path}: damaged ({safe_reading.reason(error)})") from None
    if not isinstance(state, dict):
        raise UserError(f"{path}: damaged (not a mapping)")
    return state
