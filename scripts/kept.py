"""Keep a study's numbers in a CSV file, so that the study can continue without the folders of its runs.

Each row has what was varied, the numbers, and the processor and date of the run.
"""

import csv
import datetime
import io
from collections.abc import Mapping
from pathlib import Path

from gradroute.errors import UserError
from gradroute.records.provenance import hardware

Key = tuple[str, ...]
Numbers = dict[str, float]


class Kept:
    """Numbers by what was varied; new ones are appended to the file at once.

    Args:
        file: the CSV file, which may not exist yet; None keeps nothing.
        varied, measured: names of the columns.

    Raises: UserError if the file has other columns.
    """

    def __init__(self, file: Path | None, varied: tuple[str, ...], measured: tuple[str, ...]) -> None:
        self.file, self.varied, self.measured = file, varied, measured
        self.columns = [*varied, *measured, "processor", "date"]
        self.found: dict[Key, Numbers] = {}
        if file is None or not file.exists():
            return
        with file.open(newline="") as lines:
            rows = csv.DictReader(lines)
            if list(rows.fieldnames or ()) != self.columns:
                raise UserError(f"{file}: has columns {rows.fieldnames}; this study writes {self.columns}")
            for row in rows:
                self.found[tuple(row[name] for name in varied)] = {name: float(row[name]) for name in measured}

    def nothing(self) -> UserError:
        """Return the error for a table of runs of which the file has none."""
        return UserError(f"--results {self.file}: has no run with these overrides; leave out --table to make them")

    def add(self, rows: Mapping[Key, Mapping[str, float]]) -> None:
        """Keep rows, which are written together: a study that is killed has all of them or none."""
        self.found |= {key: {name: round(own[name], 5) for name in self.measured} for key, own in rows.items()}
        if self.file is None:
            return
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        if not self.file.exists():
            writer.writerow(self.columns)
        about = [hardware()["processor"], datetime.date.today().isoformat()]
        for key in rows:
            writer.writerow([*key, *(f"{self.found[key][name]}" for name in self.measured), *about])
        with self.file.open("a", newline="") as lines:
            lines.write(text.getvalue())
