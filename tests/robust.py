"""What the robustness tests and `scripts/robustness.py` share: a tally of cases, and a limit of time for each."""

import contextlib
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType

from gradroute.errors import UserError


@dataclass
class Tally:
    """Cases tried, how each ended, and what went wrong: another exception, a hang, a wrong number."""

    tried: int = 0
    correct: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)


class Hang(BaseException):
    """A command took longer than it may; no `except Exception` swallows it."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Hang` in what runs inside after `seconds`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: UserError) -> bool:
    """Whether the message is a single, printable line that says something."""
    text = str(error)
    return bool(text.strip()) and len(text.splitlines()) == 1


def count(variable: str, default: int) -> int:
    """How many cases to try: the environment's number, or the reduced one of the tests."""
    return int(os.environ.get(variable, default))
