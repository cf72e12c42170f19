"""Read metadata columns of data points from a user's own files."""

import csv
import io
from pathlib import Path
from typing import Annotated

from gradroute.config.limits import Text
from gradroute.errors import UserError
from gradroute.records.safe_reading import open_plain

Folder = Annotated[str | None, Text("a folder's path")]


def read_columns(
    folder: str | None, part: str, count: int, what: str = "image", more: bool = False
) -> dict[str, list[str]]:
    """Return the columns of `folder/<part>.csv`, a header and a line for each data point; none without a folder.

    Args:
        count: number of data points. what: what one of them is called.
        more: whether there may be further lines, as for data of which only the first points are read.

    Raises: UserError if the file is unreadable or has too few lines, or too many.
    """
    if folder is None:
        return {}
    path = Path(folder).expanduser() / f"{part}.csv"
    try:
        with open_plain(path) as file:
            header, *lines = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
    except (UserError, OSError, ValueError, csv.Error) as error:
        raise UserError(f"dataset.metadata={folder}: {path} cannot be read ({error})") from None
    odd = next((number for number, line in enumerate(lines, 2) if len(line) != len(header)), None)
    if odd or len(lines) < count or (len(lines) > count and not more):
        fault = f"line {odd} does not have {len(header)} cells" if odd else f"{len(lines)} lines for {count} {what}s"
        raise UserError(f"dataset.metadata={folder}: {path}: {fault}; give a header and one line per {what}")
    return {column: [line[i] for line in lines[:count]] for i, column in enumerate(header)}
