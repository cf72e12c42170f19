"""Image files as arrays, with errors that name the file."""

from pathlib import Path
from typing import Any

import numpy as np

from gradroute.errors import UserError
from gradroute.records.safe_reading import open_plain, reason

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
DEEP = ("I;16", "I;16B", "I;16L", "I")  # PIL's modes of 16-bit grey images


def entries(folder: Path, right: str) -> list[Path]:
    """What is in a folder, but for hidden files, in the order of names and their numbers. Raises: UserError."""
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
    """An image as an array `(height, width)` or, in colour, `(height, width, 3)`: uint8, or uint16 of a deep grey one.

    Args:
        coloured: whether to return colours; None as the file has them.
        width, height: what the image must have; None is any. Compared before memory is taken for the pixels.
        resize: height and width to scale to.
        right: what the error says is right of the size.

    Raises: UserError if the file is no PNG or JPEG, is damaged, or has another size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        with open_plain(path) as file, Image.open(file, formats=sorted(set(FORMATS.values()))) as opened:
            if opened.width != (width or opened.width) or opened.height != (height or opened.height):
                raise UserError(f"{path}: the image is {opened.width} x {opened.height}; right is {right}")
            image = ImageOps.exif_transpose(opened)
            if resize is not None:
                if image.mode in ("P", "1"):
                    image = image.convert("RGB" if image.mode == "P" else "L")
                image = image.resize((resize[1], resize[0]), Image.Resampling.BILINEAR)
            if image.mode in DEEP:  # PIL would cut its values off at 255
                deep = np.array(image).astype(np.uint16)
                return np.repeat(deep[..., None], 3, -1) if coloured else deep
            plain = image.mode in ("1", "L", "LA")
            return np.array(image.convert("L" if coloured is False or (coloured is None and plain) else "RGB"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no {' or '.join(sorted(set(FORMATS.values()), reverse=True))}") from None
    except UserError:
        raise
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise UserError(f"{path}: damaged ({reason(error)})") from None
