"""Run sweeps by a Hydra launcher in other processes: show their jobs, and retry those that the machine lost."""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from gradroute.errors import UserError
from gradroute.running.jobs import Index, Noted, table


@contextmanager
def shown() -> Iterator[None]:
    """Show the index live on a terminal while other processes make the jobs."""
    from rich.live import Live

    from gradroute.reporting.terminal import Terminal

    console = Terminal()
    if not console.is_terminal:
        yield
        return
    with Live(console=console, get_renderable=lambda: table(Noted.folder), refresh_per_second=1, transient=True):
        yield


def launched(sweep: Callable[[], None]) -> None:
    """Have a launcher make the jobs, and retry once those whose process was lost or had too little memory.

    Raises: the launcher's error, if it began no job or if its last attempt ended with one.
    """
    if "hydra/launcher=submitit_slurm" in sys.argv and shutil.which("srun") is None:
        raise UserError("hydra/launcher=submitit_slurm: this machine has no Slurm (no srun); use submitit_local")
    Noted.folder, Noted.again = None, False
    try:
        error = _tried(sweep)
        folder: Path | None = Noted.folder  # set by Hydra during the sweep
        if folder and (lost := Index(folder).lost()):
            for entry in lost:
                print(f"retry: {' '.join(entry['overrides'])} ({entry['error'] or 'lost'})", file=sys.stderr)
            Noted.again = True
            error = _tried(sweep)
    finally:
        Noted.again = False
    if error is not None:
        raise error


def _tried(sweep: Callable[[], None]) -> Exception | None:
    """Run a sweep and return the error that ended it, or None. Raises: that error if no job was begun."""
    try:
        with shown():
            sweep()
    except Exception as error:
        if Noted.folder is None or not Index(Noted.folder).read():
            raise
        return error
    return None
