"""Read the tables of a run folder: metrics, ledger and summary."""

import csv
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from gradroute.errors import UserError
from gradroute.records.metrics import COLUMNS, LEDGER_COLUMNS
from gradroute.records.run_reader import read_file
from gradroute.records.safe_reading import read_json, read_text

NAMES = ("group", "head", "region", "metric")  # the names in a row of the summary
LONGEST = 500  # characters; a name must have fewer


def read_ledger(run: Path, manifest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of `ledger.csv`, numbers as numbers and empty cells as None; `manifest` as in `read_file`.

    Raises: UserError if the file is damaged.
    """

    def read(column: str, cell: str) -> Any:
        if column in ("group", "region"):
            return cell
        return None if cell == "" else _step(cell) if column in LEDGER_COLUMNS[:2] else float(cell)

    rows = _read_table(run, "ledger.csv", manifest, LEDGER_COLUMNS, read)
    for number, row in enumerate(rows, 2):
        if row["from_step"] is None or row["to_step"] is None or row["from_step"] >= row["to_step"]:
            raise UserError(f"{run}/ledger.csv: damaged (line {number}: from_step must be below to_step)")
    return rows


def read_metrics(run: Path, manifest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of `metrics.csv` with `step` and `value` as numbers; `manifest` as in `read_file`.

    Raises: UserError if the file is damaged.
    """
    kinds: dict[str, Callable[[str], Any]] = {"step": _step, "value": float}
    return _read_table(run, "metrics.csv", manifest, COLUMNS, lambda column, cell: kinds.get(column, str)(cell))


def read_summary(run: Path, manifest: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Return the rows of `summary.json`, the last measurements of each group; `manifest` as in `read_file`.

    Raises: UserError if the file is damaged or has no rows.
    """
    path = run / "summary.json"
    summary = read_json(read_file(run, path.name, manifest), path)
    try:
        rows = [{**row, "value": float(row["value"])} for row in summary["headline"]]
        odd = next((r for r in rows if not all(isinstance(r[n], str) and len(r[n]) < LONGEST for n in NAMES)), None)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: damaged ({error})") from None
    if odd or not rows:
        raise UserError(f"{path}: damaged ({odd or 'no rows'})")
    return rows


def _step(cell: str) -> int:
    if not 0 <= int(cell) < 2**53:
        raise ValueError(f"step {cell}")
    return int(cell)


def _read_table(
    run: Path, name: str, manifest: Mapping[str, Any] | None, columns: tuple[str, ...], read: Callable[[str, str], Any]
) -> list[dict[str, Any]]:
    text = read_text(read_file(run, name, manifest), run / name)
    try:
        header, *lines = csv.reader(io.StringIO(text, newline=""))
        if tuple(header) != columns:
            raise ValueError(f"columns are {header}")
        return [{c: read(c, cell) for c, cell in zip(columns, line, strict=True)} for line in lines]
    except (ValueError, csv.Error) as error:
        raise UserError(f"{run / name}: damaged ({error})") from None
