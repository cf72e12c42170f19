"""Write figures as tiny files: to render them takes longer than all else of a tiny run.

Plots are composed as ever, so that a mistake in a plot still fails. They are rendered in tests marked `rendered`, in
runs that a fixture of a module makes, by commands in processes of their own (`command`), and in CI's experiments.
"""

import io
import struct
import zlib
from pathlib import Path
from typing import Any


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


PNG = (  # one grey pixel
    b"\x89PNG\r\n\x1a\n"
    + _chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    + _chunk(b"IDAT", zlib.compress(b"\0\x80"))
    + _chunk(b"IEND", b"")
)
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="1" height="1"/>'


def savefig(figure: object, target: str | Path | io.BytesIO, **given: Any) -> None:
    """Take the place of `Figure.savefig`."""
    kind = given.get("format") or Path(str(target)).suffix.removeprefix(".")
    content = {"png": PNG, "svg": SVG}[kind]
    if isinstance(target, io.BytesIO):
        target.write(content)
    else:
        Path(target).write_bytes(content)


def no_engine(figure: object) -> None:
    """Take the place of `Figure.get_layout_engine`: nothing is laid out."""
