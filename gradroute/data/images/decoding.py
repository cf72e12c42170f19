"""Decode image files into arrays, with errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np

from gradroute.errors import UserError
from gradroute.records.safe_reading import open_plain, reason

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DEEP = ("I;16", "I;16B", "I;16L", "I")  # PIL's modes of 16-bit grey images


def entries(folder: Path, right: str) -> list[Path]:
    """Return the content of a folder without hidden files, ordered by name and number. Raises: UserError."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {right}") from None
    return sorted(found, key=lambda path: (len(path.stem), path.name) if path.stem[-1:].isdigit() else (0, path.name))


def decode(
    path: Path,
    coloured: bool | None,
    width: int | None = None,
    height: int | None = None,
    resize: tuple[int, int] | None = None,
    right: str = "",
) -> Any:
    """Return an image as an array `(height, width)`, or `(height, width, 3)` in colour; uint8, or uint16 for deep grey.

    Args:
        coloured: whether to return colours; None returns them if the file has them.
        width, height: the size that the image must have; None accepts any. Checked before the pixels are decoded.
        resize: height and width to scale to.
        right: the required size, as the error describes it.

    Raises: UserError if the file is not a PNG or JPEG, is damaged, or has another size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_plain(path) as file, Image.open(file, formats=sorted(set(FORMATS.values()))) as opened:
            if opened.width != (width or opened.width) or opened.height != (height or opened.height):
                raise UserError(f"{path}: the image is {opened.width} x {opened.height}; must be {right}")
            image = ImageOps.exif_transpose(opened)
            if resize is not None:
                if image.mode in ("P", "1"):
                    image = image.convert("RGB" if image.mode == "P" else "L")
                image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
            if image.mode in DEEP:  # PIL would clip the values at 255
                deep = np.array(image).astype(np.uint16)
                return np.repeat(deep[..., None], 3, -1) if coloured else deep
            plain = image.mode in ("1", "L", "LA")
            return np.array(image.convert("L" if coloured is False or (coloured is None and plain) else "RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: is not a {' or '.join(sorted(set(FORMATS.values()), reverse=True))}") from None
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise UserError(f"{path}: damaged ({reason(error)})") from None
