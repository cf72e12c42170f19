"""Sweeps by a launcher of Hydra in other processes: watched, and what the machine lost tried once more."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradroute.config.overrides import literal
from gradroute.errors import UserError
from gradroute.running.jobs import Index, Noted, table


@contextmanager
def shown() -> Iterator[None]:
    """Show the index while jobs are made elsewhere: live on a terminal."""
    from rich.live import Live

    from gradroute.reporting.terminal import Terminal

    console = Terminal()
    if not console.is_terminal:
        yield
        return
    with Live(console=console, get_renderable=lambda: table(Noted.folder), refresh_per_second=1, transient=True):
        yield


def launched(sweep: Callable[[], None]) -> None:
    """Have a launcher make the jobs, and once more those that the machine lost, or had no memory for.

    Raises: what the launcher does, if it did not begin a job, or lost some a second time.
    """
    if "hydra/launcher=submitit_slurm" in sys.argv and shutil.which("srun") is None:
        raise UserError("hydra/launcher=submitit_slurm: this machine has no Slurm (no srun); submitit_local needs none")
    Noted.folder, Noted.again = None, False
    arguments = list(sys.argv)
    try:
        error = _tried(sweep)
        folder: Path | None = Noted.folder  # as Hydra told it in between
        if folder and (lost := Index(folder).lost()):
            for entry in lost:
                print(f"once more: {' '.join(entry['overrides'])} ({entry['error'] or 'lost'})", file=sys.stderr)
            Noted.again = True
            sys.argv = [a for a in arguments if not a.startswith("hydra.sweep.dir=")]
            sys.argv.append(f"hydra.sweep.dir={literal(str(folder))}")
            error = _tried(sweep)
    finally:
        sys.argv, Noted.again = arguments, False
    if error is not None:
        raise error


def _tried(sweep: Callable[[], None]) -> Exception | None:
    """Run a sweep; returns what ended it if jobs were begun, which are in the index then."""
    try:
        with shown():
            sweep()
    except Exception as error:
        if Noted.folder is None or not Index(Noted.folder).read():
            raise
        return error
    return None
