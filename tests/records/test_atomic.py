"""Files are flushed before they take their names, so that a power failure leaves the old or the new content."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from gradroute.records import checkpoints
from gradroute.records.atomic import write_atomically


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of what is called, in order."""
    found: list[str] = []

    def note(name: str, call: Callable[..., None]) -> None:
        def noted(*arguments: object) -> None:
            found.append(name)
            call(*arguments)

        monkeypatch.setattr(os, name, noted)

    note("fsync", lambda descriptor: None)
    note("replace", os.replace)
    note("rename", os.rename)
    return found


def test_a_file_is_flushed_before_it_is_renamed(calls: list[str], tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", "new")
    assert calls == ["fsync", "replace"] and (tmp_path / "file").read_text() == "new"


def test_a_checkpoint_is_flushed_before_it_is_renamed_and_its_name_afterwards(calls: list[str], tmp_path: Path) -> None:
    files = {checkpoints.WEIGHTS: b"weights", checkpoints.STATE: b"state"}
    checkpoints.save(tmp_path, "here", {name: lambda path, c=c: path.write_bytes(c) for name, c in files.items()})  # type: ignore[misc]
    assert calls == ["fsync", "fsync", "fsync", "replace", "fsync", "rename", "fsync"]
    assert checkpoints.newest(tmp_path)
