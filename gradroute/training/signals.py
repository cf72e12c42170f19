"""End a run on a signal: at once if nothing is lost by it, else after the current update.

SIGINT ends with status 130; SIGTERM, SIGHUP (a closed terminal), SIGUSR1 (which Slurm can send before it takes a
machine away) and the others with 128 plus their number. A second SIGINT ends at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class _Asked:
    """The first signal that came, and whether it has to wait."""

    signal: int | None = None
    held: bool = False
    together: bool = False  # several processes end after the same update
    agreed: bool = False


def _come(number: int, frame: FrameType | None) -> None:
    if _Asked.signal is not None and number == signal.SIGINT:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    if _Asked.signal is None:
        _Asked.signal = number
        if not _Asked.held:
            end()


def _unwanted(number: int) -> bool:
    """Return whether the process was started to ignore a closed terminal, as by nohup."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def heard() -> Iterator[None]:
    """Handle the signals inside the block; outside the main thread, leave them to the system."""
    try:
        before = {number: signal.signal(number, _come) for number in SIGNALS if not _unwanted(number)}
    except ValueError:
        yield
        return
    _Asked.signal, _Asked.agreed = None, False
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Defer signals inside the block until `end` is called, at the latest to the end of the block."""
    before, _Asked.held = _Asked.held, True
    try:
        yield
    finally:
        _Asked.held = before
    if not before:
        end()


@contextmanager
def agreed() -> Iterator[None]:
    """Defer signals inside the block until `agree` was called, which all processes do together."""
    _Asked.together, _Asked.agreed = True, False
    try:
        yield
    finally:
        _Asked.together = False


def number() -> int:
    """Return the signal that came to this process, 0 for none."""
    return _Asked.signal or 0


def agree(signal: int) -> None:
    """Adopt the signal that came to any process, 0 for none."""
    if signal:
        _Asked.signal, _Asked.agreed = signal, True


def asked() -> bool:
    """Return whether a signal came that the run is to end by."""
    return _Asked.signal is not None and (_Asked.agreed or not _Asked.together)


def end() -> None:
    """If a signal came, raise KeyboardInterrupt for SIGINT, SystemExit for others."""
    if not asked():
        return
    if _Asked.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number())
