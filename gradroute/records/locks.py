"""One process at a time in a run folder; the system lets go of the lock however the process ends.

Where the system or the file system has no such locks, a folder counts as free.
"""

import os
import time
from pathlib import Path

from gradroute.errors import UserError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"
TRIES = 5  # somebody may just be asking, as `in_use` does


def take(run: Path) -> int | None:
    """Take a run folder; returns what `release` needs. Raises: UserError if another process has it."""
    if fcntl is None:
        return None
    for _ in range(TRIES):
        descriptor = os.open(run / NAME, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            time.sleep(0.05)
            continue
        except OSError:  # no locks here
            return descriptor
        if _is_there(descriptor, run / NAME):
            return descriptor
        os.close(descriptor)  # the file that it is a lock of was removed in between
    raise UserError(f"{run}: another process is at work in this run folder; wait for it, or stop it")


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def release(run: Path, taken: int | None) -> None:
    """Give back what `take` took; the file goes too."""
    if taken is not None:
        (run / NAME).unlink(missing_ok=True)
        os.close(taken)


def in_use(run: Path) -> bool:
    """Whether a process has the run folder."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(run / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
