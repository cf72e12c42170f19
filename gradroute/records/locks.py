"""Lock a run folder for one process; the system releases the lock however the process ends.

Without file locks in the system or the file system, every folder counts as free.
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
TRIES = 5  # `in_use` of another process holds the lock for a moment


def take(run: Path) -> int | None:
    """Lock a run folder and return what `release` needs. Raises: UserError if another process holds it."""
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
        except OSError:  # the file system has no locks
            return descriptor
        if _is_there(descriptor, run / NAME):
            return descriptor
        os.close(descriptor)  # the lock file was removed in the meantime
    raise UserError(f"{run}: another process is using this run folder; wait for it, or stop it")


def _is_there(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def release(run: Path, taken: int | None) -> None:
    """Release the lock that `take` returned, and remove its file."""
    if taken is not None:
        (run / NAME).unlink(missing_ok=True)
        os.close(taken)


def in_use(run: Path) -> bool:
    """Return whether a process holds the run folder."""
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
