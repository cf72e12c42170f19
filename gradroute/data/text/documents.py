"""Read documents with metadata from plain text, JSON lines, Parquet, or Hugging Face `datasets`."""

import hashlib
import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from gradroute.data.hub import package, reason
from gradroute.errors import HF_EXTRA, UserError

SEPARATOR = "<|endoftext|>"  # a line of its own in a plain text file
Row = Mapping[str, Any]  # one document's fields by name


@dataclass(frozen=True)
class Documents:
    """Texts, and metadata columns by name, with one text per document."""

    texts: Sequence[str]
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.texts)

    @cached_property
    def sha256(self) -> str:
        """The hash of all texts and columns."""
        digest = hashlib.sha256()
        for name, values in (("", self.texts), *sorted(self.columns.items())):
            for text in (name, *values):
                encoded = text.encode()
                digest.update(len(encoded).to_bytes(8, "little") + encoded)
        return digest.hexdigest()

    def take(self, numbers: Iterable[int]) -> "Documents":
        """Return the documents with these numbers, in this order."""
        chosen = list(numbers)
        columns = {name: [values[i] for i in chosen] for name, values in self.columns.items()}
        return Documents([self.texts[i] for i in chosen], columns)


def read(path: Path | str, text_field: str = "text", limit: int | None = None) -> Documents:
    """Read the documents of one file, or of all files in a folder in the order of their names; all of one kind.

    A `.txt` file has one document, or several that are separated by lines `<|endoftext|>`; the column `file` has its
    name. `.jsonl` and `.parquet` have a document in the field `text_field` of each row; other scalar fields become
    columns. `.txt` and `.jsonl` may be compressed with `.xz`. Documents of white space only are left out.

    Args:
        limit: keep only the first documents.

    Raises: UserError for a missing, empty, undecodable or unreadable file, a field that is missing or not text, or a
        folder with no such files or with several kinds.
    """
    path, readers = Path(path).expanduser(), {".txt": _plain, ".jsonl": _json_lines, ".parquet": _parquet}
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    right = "give .txt, .jsonl or .parquet, also .txt.xz or .jsonl.xz"
    files = sorted(p for p in path.iterdir() if _kind(p) in readers) if path.is_dir() else [path]
    kinds = {_kind(file) for file in files}
    if len(kinds) != 1 or not kinds <= readers.keys():
        found = f"{len(kinds)} kinds of files, {', '.join(sorted(kinds))}" if len(kinds) > 1 else "no readable file"
        raise UserError(f"{path}: {found}; {right}")
    reader = readers[kinds.pop()]
    rows = (row for file in files for row in reader(file, text_field))
    return _collected(rows, text_field, str(path), limit)


def from_hub(name: str, split: str, text_field: str = "text", limit: int | None = None) -> Documents:
    """Load the documents of a data set from the Hugging Face hub, or from a local folder that `datasets` reads.

    Raises: UserError if the extra is missing, the data set cannot be loaded, or a field is missing or not text.
    """
    datasets = package("datasets", f"dataset '{name}'")
    try:
        folder = Path(name).expanduser()
        rows = datasets.load_dataset(str(folder) if folder.is_dir() else name, split=split)
    except Exception as error:  # the hub, the network and damaged files raise many kinds
        raise UserError(f"dataset '{name}', split '{split}': cannot be loaded [{reason(error)}]") from None
    return _collected(iter(rows), text_field, f"dataset '{name}'", limit)


def _no_field(where: str, text_field: str, row: Row) -> UserError:
    """Build the error for a row without the text field; it names the key to set."""
    texts = [str(name) for name, value in row.items() if isinstance(value, str)]
    longest = max(texts, key=lambda name: len(row[name]), default=None)
    hint = f"set dataset.field={longest}" if longest is not None else "none of them is text"
    names = ", ".join(map(str, row)) or "none"
    return UserError(f"{where}: has no field '{text_field}', its fields are {names}; {hint}")


def _kind(path: Path) -> str:
    suffix = Path(path.stem).suffix if path.suffix == ".xz" else path.suffix
    return "" if path.suffix == ".xz" and suffix == ".parquet" else suffix


def _collected(rows: Iterator[Row], text_field: str, where: str, limit: int | None) -> Documents:
    texts, columns = list[str](), dict[str, list[str]]()
    for number, row in enumerate(rows, 1):
        if limit is not None and len(texts) >= limit:
            break
        if text_field not in row:
            raise _no_field(f"{where}, row {number}", text_field, row)
        text = row[text_field]
        if not isinstance(text, str):
            raise UserError(f"{where}, row {number}: field '{text_field}' is a {type(text).__name__}, not text")
        if text.strip():
            for name, value in row.items():
                if name != text_field and isinstance(value, str | int | float):
                    columns.setdefault(name, [""] * len(texts)).append(str(value))
            texts.append(text)
            for values in columns.values():
                values.extend([""] * (len(texts) - len(values)))
    if not texts:
        raise UserError(f"{where}: has no document; every text is empty")
    return Documents(texts, columns)


def _decoded(path: Path) -> str:
    try:
        content = path.read_bytes()
        content = lzma.decompress(content) if path.suffix == ".xz" else content
        text = content.decode()
    except UnicodeDecodeError as error:
        byte = content[error.start]
        raise UserError(f"{path}: byte {error.start} (0x{byte:02x}) is not UTF-8; convert the file") from None
    except (OSError, lzma.LZMAError) as error:
        raise UserError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty")
    return text


def _plain(path: Path, text_field: str) -> Iterator[Row]:
    document = list[str]()
    for line in [*_decoded(path).split("\n"), SEPARATOR]:
        if line.strip() == SEPARATOR:
            yield {text_field: "\n".join(document).strip(), "file": path.name}
            document = []
        else:
            document.append(line)


def _json_lines(path: Path, text_field: str) -> Iterator[Row]:
    for number, line in enumerate(_decoded(path).split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}, line {number}: is not JSON ({error.msg} at column {error.colno})") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: is a {type(row).__name__}; give an object with '{text_field}'")
        if text_field not in row:
            raise _no_field(f"{path}, line {number}", text_field, row)
        yield row


def _parquet(path: Path, text_field: str) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise UserError(f"{path}: Parquet needs the package pyarrow: {HF_EXTRA}") from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for batch in file.iter_batches():
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise UserError(f"{path}: cannot be read as Parquet ({str(error).splitlines()[0]})") from None
