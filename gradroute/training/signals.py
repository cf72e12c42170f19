"""Signals that end a run: at once where that loses nothing, else after the update that is being made.

SIGINT ends with status 130; SIGTERM, SIGHUP (a closed terminal), SIGUSR1 (which Slurm can send before it takes a
machine away) and the others with 128 and their number. A second SIGINT ends at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGXCPU", "SIGPWR", "SIGBREAK")
SIGNALS = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class _Asked:
    """What was asked for: the first signal that came, and whether it has to wait."""

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
    """Whether whoever started the process has it ignore a closed terminal, as nohup does."""
    return number == getattr(signal, "SIGHUP", None) and signal.getsignal(number) == signal.SIG_IGN


@contextmanager
def heard() -> Iterator[None]:
    """Hear the signals inside; where that is not the main thread, only the system does."""
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
    """Inside, a signal waits until `end` is called, at the latest to the end."""
    before, _Asked.held = _Asked.held, True
    try:
        yield
    finally:
        _Asked.held = before
    if not before:
        end()


@contextmanager
def agreed() -> Iterator[None]:
    """Inside, a signal counts once `agree` was told of it: by then all processes have been."""
    _Asked.together, _Asked.agreed = True, False
    try:
        yield
    finally:
        _Asked.together = False


def number() -> int:
    """The signal that came to this process, 0 for none."""
    return _Asked.signal or 0


def agree(signal: int) -> None:
    """Take the signal that came to any process, 0 for none, as one's own."""
    if signal:
        _Asked.signal, _Asked.agreed = signal, True


def asked() -> bool:
    """Whether a signal came and waits."""
    return _Asked.signal is not None and (_Asked.agreed or not _Asked.together)


def end() -> None:
    """If a signal came, end as it wants it, by KeyboardInterrupt or SystemExit."""
    if not asked():
        return
    if _Asked.signal == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number())
