"""Interrupt runs after a checkpoint, or do something else to them then."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from gradroute.config.schema import Config
from gradroute.running.run import Run
from gradroute.running.runner import execute


class Killed(BaseException):
    """The simulated death of a process."""


def at_checkpoint(monkeypatch: pytest.MonkeyPatch, number: int, then: Callable[[Run], None]) -> None:
    """Call `then` after the `number`-th checkpoint, counted from 1; later checkpoints are left alone."""
    save, count = Run.checkpoint, [0]

    def checkpoint(run: Run, fit: object = None) -> None:
        save(run, fit)  # type: ignore[arg-type]
        count[0] += 1
        if count[0] == number:
            then(run)

    monkeypatch.setattr(Run, "checkpoint", checkpoint)


def die(run: Run) -> None:
    raise Killed


def interrupted(monkeypatch: pytest.MonkeyPatch, configs: Sequence[Config], number: int) -> list[Path]:
    """Start runs and stop the process after `number` checkpoints; return their folders."""
    with monkeypatch.context() as patch, pytest.raises(Killed):
        at_checkpoint(patch, number, die)
        execute(configs)
    return sorted(path.parent for path in Path(configs[0].output_dir).glob("*/*/manifest.json"))


def goes_on_alike(
    monkeypatch: pytest.MonkeyPatch, whole: Config, cut: Config, number: int, names: Sequence[str]
) -> Path:
    """Check that a run resumed from its `number`-th checkpoint writes the same files as one that was not interrupted.

    whole, cut: the same configuration with output folders of their own. names: of the files. Returns: the whole run.
    """
    (run,) = execute([whole])
    (folder,) = interrupted(monkeypatch, [cut], number)
    assert execute([cut], folder=folder) == [folder] and isinstance(run, Path)
    for name in names:
        assert (folder / name).read_bytes() == (run / name).read_bytes(), name
    return run
