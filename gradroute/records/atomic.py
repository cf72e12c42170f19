"""Write files atomically: to a temporary file, flushed, then renamed."""

import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

Content = str | bytes | Callable[[Path], None]  # or a function that writes a file at a path


def write_atomically(path: Path, content: Content) -> None:
    """Write a file so that a reader sees either the old or the new content, never a part of it."""
    descriptor, aside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(descriptor)
    try:
        if callable(content):
            content(Path(aside))
        else:
            Path(aside).write_bytes(content.encode() if isinstance(content, str) else content)
        with open(aside, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(aside, 0o644)
        os.replace(aside, path)
    except BaseException:
        Path(aside).unlink(missing_ok=True)
        raise


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, which is read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
