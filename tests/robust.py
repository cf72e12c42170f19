"""Helpers of the robustness tests and `scripts/robustness.py`: a tally of cases, and a time limit for each."""

import contextlib
import hashlib
import json
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hypothesis import HealthCheck, Phase, settings

from gradroute.data.images.dataset import ImageDataset, Images
from gradroute.errors import UserError
from gradroute.records.seal import sealed


@dataclass
class Tally:
    """Cases tried, how each ended, and what went wrong: another exception, a hang, a wrong number."""

    tried: int = 0
    correct: int = 0
    refused: int = 0
    wrong: list[str] = field(default_factory=list)

    def add(self, case: str, end: str) -> None:
        """Count a case that ended `accepted`, `correct` or `refused`; any other end is wrong."""
        self.tried += 1
        self.correct += end in ("accepted", "correct")
        self.refused += end == "refused"
        if end not in ("accepted", "correct", "refused"):
            self.wrong.append(f"{case}: {end}")


def trying(cases: int) -> settings:
    """Return Hypothesis settings that try a fixed series of cases: faults are tallied, not shrunk."""
    return settings(
        max_examples=cases, database=None, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )  # fmt: skip


class Hang(BaseException):
    """A command exceeded its time limit. Not an `Exception`, so that no handler swallows it."""


@contextlib.contextmanager
def within(seconds: int) -> Iterator[None]:
    """Raise `Hang` in the block if it runs longer than `seconds`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Hang(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def reseal(run: Path) -> None:
    """Update the manifest's checksums to the files as they are now, as a stranger can."""
    manifest = json.loads((run / "manifest.json").read_text())
    plain = [p for p in run.rglob("*") if p.is_file() and p.name != "manifest.json" and p.stat().st_size < 2**30]
    sums = {p.relative_to(run).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest() for p in plain}
    (run / "manifest.json").write_text(json.dumps(sealed({**manifest, "files": manifest["files"] | sums})))


def read_once(tensors: Callable[..., Images], kept: dict[str, Images]) -> Callable[..., Images]:
    """Return `tensors`, a method of data sets, that keeps what it has read, by the data set and its arguments."""

    def read(self: ImageDataset, *limits: int | None, **supplied: Any) -> Images:
        key = f"{type(self)} {vars(self)} {limits} {supplied}"
        if key not in kept:
            kept[key] = tensors(self, *limits, **supplied)
        return kept[key]

    return read


@contextlib.contextmanager
def kept_data() -> Iterator[None]:
    """Read each data set only once in the block, for tests that are not about reading it."""
    tensors = ImageDataset.tensors
    ImageDataset.tensors = read_once(tensors, {})  # type: ignore[method-assign]
    try:
        yield
    finally:
        ImageDataset.tensors = tensors  # type: ignore[method-assign]


def one_line(error: UserError) -> bool:
    """Return whether the message is one line that is not blank."""
    text = str(error)
    return bool(text.strip()) and len(text.splitlines()) == 1


def count(variable: str, default: int) -> int:
    """Return how many cases to try: the number in the environment, or the tests' reduced default."""
    return int(os.environ.get(variable, default))
