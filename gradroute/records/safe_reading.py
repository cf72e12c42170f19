"""Read files that may come from a stranger: every file of a run folder is read through this module.

Nothing that is read is executed. Paths must stay inside their folder, files must be regular, and sizes are checked
before memory is taken. Parsed data are plain: mappings with text keys, lists, text, numbers, true, false and null.
"""

import hashlib
import json
import os
import stat
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import IO, Any, BinaryIO

import yaml

from gradroute.errors import UserError, plain_text

MIB = 2**20
LIMITS = {  # largest size of a file by its suffix, in bytes
    ".yaml": 4 * MIB, ".json": 16 * MIB, ".csv": 128 * MIB, ".npz": 512 * MIB, ".png": 64 * MIB, ".html": 256 * MIB,
    ".safetensors": 65536 * MIB, ".pt": 131072 * MIB,
}  # fmt: skip
OTHER_LIMIT = 1024 * MIB
ARRAYS_LIMIT = 1024 * MIB  # bytes of all arrays of an .npz together, unpacked
DEPTH = 32  # levels of nesting in YAML and JSON
SCALAR = 10_000  # largest number of characters of one value in YAML


def place(folder: Path, name: str) -> Path:
    """Return the path of a file of `folder`. Raises: UserError if the name leads out of it, also through a link."""
    plain = PurePosixPath(name)
    inside = name == plain.as_posix() and not plain.is_absolute() and ".." not in plain.parts
    if not inside or name in ("", ".") or not name.isprintable() or "\\" in name or ":" in name:
        raise UserError(f"{folder}: the file name '{plain_text(name)}' leads out of the folder or is not a plain name")
    path = folder / name
    if not any(part.is_symlink() for part in (path, *path.parents[: len(plain.parts) - 1])):
        return path
    try:
        if path.resolve().is_relative_to(folder.resolve()):
            return path
    except (OSError, RuntimeError) as error:  # RuntimeError: circular links
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    raise UserError(f"{path}: is a link that leads out of its folder, which is not allowed")


def reason(error: BaseException) -> str:
    """Return what went wrong, in one line and without the file name."""
    said = getattr(error, "strerror", None) or getattr(error, "problem", None)  # of an OSError, of a YAMLError
    return plain_text(said or str(error).partition("\n")[0] or type(error).__name__)


def open_plain(path: Path, limit: int | None = None) -> BinaryIO:
    """Open a regular file for reading; pipes and devices are not even opened.

    `limit`: its largest size in bytes; None for that of its suffix. Raises: UserError if it cannot be read, is not a
    regular file or is larger.
    """
    limit = LIMITS.get(path.suffix, OTHER_LIMIT) if limit is None else limit
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise UserError(f"{path}: cannot be read (it is not a regular file)")
        file = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    size = os.fstat(file.fileno()).st_size
    if size > limit:
        file.close()
        raise UserError(f"{path}: has {size} bytes; such a file may have at most {limit}")
    return file


def read_bytes(folder: Path, name: str, sha256: str | None = None) -> bytes:
    """Return the content of a file of `folder`, compared with its checksum if one is given. Raises: UserError."""
    path = place(folder, name)
    with open_plain(path) as file:
        try:
            content = file.read(LIMITS.get(path.suffix, OTHER_LIMIT))
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error)})") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise UserError(f"{path}: damaged (its SHA-256 differs from the manifest's)")
    return content


def read_sha256(folder: Path, name: str) -> str:
    """Return the SHA-256 of a file of `folder` without loading the file into memory. Raises: UserError."""
    path = place(folder, name)
    with open_plain(path) as file:
        try:
            return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({reason(error)})") from None


def read_text(content: bytes, where: object) -> str:
    """Decode UTF-8. Raises: UserError, naming `where`."""
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: damaged ({error})") from None


def read_json(content: bytes, where: object, any_number: bool = False) -> Any:
    """Parse plain data from JSON. Raises: UserError, naming `where`.

    any_number: also accept integers of more than 64 bits, which `transformers` writes where a tokenizer has no maximum.
    """
    try:
        value = json.loads(read_text(content, where), parse_int=float if any_number else None)
        _require_plain(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({reason(error)})") from None
    return value


def read_yaml(content: bytes, where: object) -> Any:
    """Parse plain data from YAML; tags and aliases, which gradroute never writes, are refused. Raises: UserError."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # a SafeLoader either way
    text = read_text(content, where)
    try:
        return _from_events(yaml.parse(text, loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{where}: damaged ({reason(error)})") from None


def _from_events(events: Iterable[Any]) -> Any:
    """Build plain data in one pass over the parser's events; PyYAML's composer and constructor are slower."""
    open_: list[list[Any]] = [[]]  # items read so far of the collections around this event, outermost first
    for event in events:
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("aliases are not allowed")
        if (tag := getattr(event, "tag", None)) is not None:
            raise ValueError(f"the tag {tag} is not allowed")
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > SCALAR:
                raise ValueError(f"a value of more than {SCALAR} characters")
            open_[-1].append(_scalar(event.value, event.implicit))
        elif isinstance(event, yaml.CollectionStartEvent):
            open_.append([])
            if len(open_) > DEPTH + 1:
                raise ValueError(f"more than {DEPTH} levels of nesting")
        elif isinstance(event, yaml.CollectionEndEvent):
            children = open_.pop()
            is_mapping = isinstance(event, yaml.MappingEndEvent)
            if is_mapping and not all(isinstance(key, str) for key in children[::2]):
                raise ValueError("a key is not text")
            open_[-1].append(dict(zip(children[::2], children[1::2], strict=True)) if is_mapping else children)
    if len(open_[0]) > 1:
        raise ValueError("more than one document")
    return open_[0][0] if open_[0] else None


@lru_cache(4096)  # most values recur from run to run
def _scalar(value: str, implicit: tuple[bool, bool]) -> Any:
    """Resolve one value of YAML by PyYAML's own rules. Raises: ValueError if it is not plain data."""
    tag = yaml.resolver.Resolver().resolve(yaml.ScalarNode, value, implicit)
    found = yaml.constructor.SafeConstructor().construct_object(yaml.ScalarNode(tag, value))
    _require_plain(found)
    return found


def _require_plain(root: Any) -> None:
    """Raise ValueError for data that are not plain or nested too deeply, and numbers or text that cannot be written."""
    level = [root]
    for _ in range(DEPTH + 1):
        level = [child for value in level for child in _checked_children(value)]
        if not level:
            return
    raise ValueError(f"more than {DEPTH} levels of nesting")


def _checked_children(value: Any) -> list[Any]:
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise ValueError("a key is not text")
        return [*value, *value.values()]
    if isinstance(value, list):
        return value
    if isinstance(value, int) and abs(value) >= 2**64:
        raise ValueError("a whole number of more than 64 bits")
    if isinstance(value, str):
        value.encode()  # raises for half a surrogate pair, which cannot be written
    elif not (value is None or isinstance(value, bool | int | float)):
        raise ValueError(f"a {type(value).__name__} is not plain data")
    return []


def read_arrays(file: IO[bytes], where: object) -> "Mapping[str, Any]":
    """Read the arrays of an `.npz`, of numbers and bools only; each size is checked before unpacking.

    Raises: UserError, naming `where`.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            if len({member.filename for member in members}) < len(members):
                raise ValueError("two arrays have the same name")
            if sum(member.file_size for member in members) > ARRAYS_LIMIT:
                raise ValueError(f"its arrays have more than {ARRAYS_LIMIT} bytes")
            return {member.filename.removesuffix(".npy"): _array(archive, member) for member in members}
    except (
        zipfile.BadZipFile, zlib.error, ValueError, OSError, EOFError, RuntimeError, KeyError, SyntaxError, TypeError,
        OverflowError, MemoryError,
    ) as error:  # fmt: skip
        raise UserError(f"{where}: damaged ({reason(error)})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Any:
    import numpy as np

    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{member.filename}: unknown compression")
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        if version not in header:
            raise ValueError(f"{member.filename}: unknown version {version} of the format")
        shape, fortran, dtype = header[version](file)
        size = dtype.itemsize
        for length in shape:
            size *= int(length)
        if dtype.kind not in "fiub" or any(length < 0 for length in shape):
            raise ValueError(f"{member.filename}: {dtype} of shape {shape} is not allowed")
        if size != member.file_size - file.tell():
            raise ValueError(f"{member.filename}: {dtype} of shape {shape} does not fit the file's size")
        content = file.read(size)  # reading to the end compares the zip's own checksum
        file.read(1)
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C").copy()
