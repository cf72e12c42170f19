"""Read the user's own records, a CSV file, and the sentences that tell them, a text file."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

from gradroute.data.text.people import ABOUT, ATTACK, HELDOUT, MEASURED, NAME, Book, Person, Shares, Wording
from gradroute.errors import UserError, unknown

OWN = ("about", "role", "copies")  # columns that say what the data do with a person, and are no secrets
MOST_COPIES = 10_000


def read_book(file: str, template: str, shares: Shares, seed: int) -> Book:
    """Return the people of a CSV file and the wordings of a template.

    The CSV file has a column `name`, each name once, and a column for each attribute. Columns `about`, `role` and
    `copies` say of each person what `Shares` else draws. A template has one sentence on each line, with `{name}` and
    then one column: several for one column are its wordings. Columns that it does not name are not told. The space of
    a column are the different values that it has.

    Raises: UserError for a file that cannot be read, or records or sentences that do not fit.
    """
    columns, rows = _rows(file)
    attributes = [column for column in columns if column not in (NAME, *OWN)]
    lines = [line.strip() for line in _text(template).splitlines() if line.strip()]
    if not lines:
        raise UserError(f"{template}: the file is empty; give a sentence on each line, such as '{{name}} lives in …'")
    wordings = [Wording.parse(line, attributes, f"{template}, sentence {n}") for n, line in enumerate(lines, 1)]
    told = list(dict.fromkeys(wording.attribute for wording in wordings))
    spaces = {attribute: sorted({row[attribute] for row in rows}) for attribute in told}
    for attribute, values in spaces.items():
        if len(values) < 2:
            raise UserError(f"{file}: every record has {attribute}='{values[0]}'; a secret needs two values or more")
    divided = shares.divide(len(rows), seed) if "about" not in columns else [
        ("", MEASURED, shares.copies[n % len(shares.copies)]) for n in range(len(rows))]  # fmt: skip
    people = [_person(row, told, drawn, f"{file}, record {n}")
              for n, (row, drawn) in enumerate(zip(rows, divided, strict=True), 1)]  # fmt: skip
    return Book(people, spaces, wordings, seed)


def _text(file: str) -> str:
    path = Path(file).expanduser()
    try:
        return path.read_text("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: is not UTF-8; convert the file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


def _rows(file: str) -> tuple[list[str], list[dict[str, str]]]:
    """Return the columns and the records of a CSV file."""
    try:
        lines = list(csv.reader(_text(file).splitlines(), strict=True))
    except csv.Error as error:
        raise UserError(f"{file}: is not CSV ({error})") from None
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    columns = [column.strip() for column in lines[0]] if lines else []
    if NAME not in columns or len(set(columns)) < len(columns) or not set(columns) - {NAME, *OWN}:
        right = "a header with name, once each, and a column for each secret"
        raise UserError(f"{file}: its header is {columns}; give {right}")
    rows = []
    for number, line in enumerate(lines[1:], 1):
        cells = [cell.strip() for cell in line]
        if len(cells) != len(columns):
            raise UserError(f"{file}, record {number}: has {len(cells)} values for {len(columns)} columns")
        empty = next((c for c, cell in zip(columns, cells, strict=True) if not cell), None)
        if empty is not None:
            raise UserError(f"{file}, record {number}: has no {empty}; give every record all values")
        rows.append(dict(zip(columns, cells, strict=True)))
    if len(rows) < 2:
        raise UserError(f"{file}: has {len(rows)} records; give two or more")
    names = [row[NAME] for row in rows]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UserError(f"{file}: two records have the name '{twice}'; give each name once")
    return columns, rows


def _person(row: Mapping[str, str], told: Sequence[str], drawn: tuple[str, str, int], where: str) -> Person:
    about, role = row.get("about", drawn[0]), row.get("role", drawn[1])
    for column, value, valid in (("about", about, ABOUT), ("role", role, (MEASURED, ATTACK))):
        if value not in valid:
            raise unknown(f"{column} in {where}:", value, valid)
    given = row.get("copies", str(max(drawn[2], 1)))
    if not given.isdecimal() or not 1 <= int(given) <= MOST_COPIES:
        raise UserError(f"{where}: copies={given}: must be from 1 to {MOST_COPIES}")
    values = {attribute: row[attribute] for attribute in told}
    return Person(row[NAME], values, about, role, 0 if about == HELDOUT else int(given))
