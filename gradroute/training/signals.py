"""Signals that end a run: at once where that loses nothing, else after the update that is being made.

SIGINT ends with status 130, SIGTERM with 143, SIGUSR1, which Slurm can send before it takes a machine away, with 138.
A second SIGINT ends at once.
"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


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


@contextmanager
def heard() -> Iterator[None]:
    """Hear the signals inside; where that is not the main thread, only the system does."""
    try:
        before = {number: signal.signal(number, _come) for number in SIGNALS}
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
