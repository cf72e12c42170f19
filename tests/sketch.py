"""Write figures as tiny files: to render them takes longer than all else of a tiny run.

Plots are composed as ever, so that a mistake in a plot still fails. They are rendered in tests marked `rendered`, in
runs that a fixture of a module makes, by commands in processes of their own (`command`), and in CI's experiments.
"""

import io
from pathlib import Path
from typing import Any

from PIL import Image


def _grey() -> bytes:
    written = io.BytesIO()
    Image.new("L", (1, 1), 128).save(written, "png")
    return written.getvalue()


PNG = _grey()  # one pixel
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
