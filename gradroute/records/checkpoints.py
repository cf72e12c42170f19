"""Checkpoints: written atomically, the last two kept, verified before loading.

A checkpoint is a folder `checkpoints/NUMBER`, or `replay/UPDATE`, of a run. It has `weights.safetensors`, `state.pt`
(all other state) and `checkpoint.json` (the run's progress, and the SHA-256 of the other two).
`gradroute.training.states` writes and reads the first two.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from gradroute.errors import UserError
from gradroute.records import safe_reading
from gradroute.records.atomic import write_atomically
from gradroute.records.run_folder import CHECKPOINTS
from gradroute.records.seal import SEAL, sealed

WEIGHTS, STATE, ABOUT = "weights.safetensors", "state.pt", "checkpoint.json"
REPLAY = "replay"  # the folder of checkpoints that a finished run keeps
KEPT = 2
ASIDE = ".writing"


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint. Runs with the same `position`, a text of their progress, can resume in one stack."""

    run: Path
    name: str
    position: str


def save(run: Path, position: str, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write a checkpoint and remove all but the last `KEPT`.

    Args:
        position: the run's progress; see `Checkpoint`.
        files: functions that write `WEIGHTS` and `STATE` to a path, by file name.

    Raises: OSError if the checkpoint cannot be written; the older ones stay.
    """
    folder = run / CHECKPOINTS
    numbers = _numbers(folder)
    _write(folder, f"{max(numbers, default=0) + 1:06d}", position, files)
    for number in numbers[: 1 - KEPT]:
        shutil.rmtree(folder / f"{number:06d}")


def keep(run: Path, update: int, position: str, files: Mapping[str, Callable[[Path], None]]) -> None:
    """Write the checkpoint before an update to `replay/UPDATE`, where it stays; nothing if it is there.

    Args: as of `save`. Raises: OSError if it cannot be written.
    """
    folder, name = run / REPLAY, f"{update:06d}"
    if not (folder / name).exists():  # a resumed run comes to the same update again
        _write(folder, name, position, files)


def _write(folder: Path, name: str, position: str, files: Mapping[str, Callable[[Path], None]]) -> None:
    folder.mkdir(exist_ok=True)
    aside = folder / ASIDE
    shutil.rmtree(aside, ignore_errors=True)  # left by a run that was killed while writing
    aside.mkdir()
    try:
        for file, write in files.items():
            write(aside / file)
        sums = {file: _sum_and_flush(aside / file) for file in files}
        write_atomically(aside / ABOUT, json.dumps(sealed({"position": position, "sha256": sums}), indent=2) + "\n")
        _flush(aside)
        os.rename(aside, folder / name)
        _flush(folder)
    except BaseException as error:
        shutil.rmtree(aside, ignore_errors=True)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):  # torch wraps the OSError
            raise error.__context__ from None
        raise


def newest(run: Path) -> Checkpoint | None:
    """Return the last intact checkpoint, or None if the run has none. Raises: UserError if all are damaged."""
    damage: list[str] = []
    for number in reversed(_numbers(run / CHECKPOINTS)):
        try:
            return _read(run, f"{CHECKPOINTS}/{number:06d}")
        except UserError as error:
            damage.append(str(error))
    if damage:
        raise UserError(f"{damage[0]}; the run has no intact checkpoint")
    return None


def kept(run: Path) -> list[int]:
    """Return the numbers of updates before the checkpoints that `keep` wrote."""
    return _numbers(run / REPLAY)


def read_kept(run: Path, update: int) -> Checkpoint:
    """Return a checkpoint that `keep` wrote. Raises: UserError if it is damaged or missing."""
    return _read(run, f"{REPLAY}/{update:06d}")


def _read(run: Path, name: str) -> Checkpoint:
    try:
        about = safe_reading.read_json(safe_reading.read_bytes(run, f"{name}/{ABOUT}"), run / name / ABOUT)
        if not isinstance(about, dict) or sealed(about)[SEAL] != about.get(SEAL):
            raise UserError(f"{run / name / ABOUT}: damaged (its SHA-256 differs from the one in it)")
        for file in (WEIGHTS, STATE):
            if safe_reading.read_sha256(run, f"{name}/{file}") != about["sha256"][file]:
                raise UserError(f"{run / name / file}: damaged (its SHA-256 differs from the checkpoint's)")
        return Checkpoint(run, name, str(about["position"]))
    except (KeyError, TypeError):
        raise UserError(f"{run / name}: damaged") from None


def remove(run: Path) -> None:
    """Remove every checkpoint."""
    shutil.rmtree(run / CHECKPOINTS, ignore_errors=True)


def _numbers(folder: Path) -> list[int]:
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    return sorted(int(name) for name in names if name.isascii() and name.isdigit() and len(name) >= 6)


def _sum_and_flush(path: Path) -> str:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Flush the entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
