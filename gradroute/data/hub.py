"""Import Hugging Face packages, silence their output, and report their errors in one line."""

import importlib
import io
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr
from pathlib import Path
from types import ModuleType

from gradroute.errors import HF_EXTRA, UserError, plain_text


def package(name: str, what: str) -> ModuleType:
    """Import a package of the extra `hf`, log only its errors, and show its progress bars only on a terminal.

    Raises: UserError if it is missing; `what` is the feature that needs it.
    """
    try:
        module = importlib.import_module(name)
        hub = importlib.import_module("huggingface_hub")
    except ImportError:
        raise UserError(f"{what} needs the package {name}: {HF_EXTRA}") from None
    for logger in ("huggingface_hub", "transformers", "datasets"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    if not sys.stderr.isatty():
        hub.utils.disable_progress_bars()
        if name == "datasets":
            module.disable_progress_bars()
        elif name == "transformers":
            module.utils.logging.disable_progress_bar()
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Drop what a package writes to a standard error that is not a terminal, such as bars that cannot be turned off."""
    with nullcontext() if sys.stderr.isatty() else redirect_stderr(io.StringIO()):
        yield


def reason(error: BaseException) -> str:
    """Return the first line of an error's message, at most 300 characters."""
    return plain_text((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def gguf_of(source: str) -> tuple[str, str] | None:
    """Return the folder and name of a GGUF file, given the file, or a folder with one and no `config.json`, or None.

    Raises: UserError if the folder has several.
    """
    path = Path(source).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return str(path.parent), path.name
    if not path.is_dir() or (path / "config.json").is_file():
        return None
    found = sorted(each.name for each in path.glob("*.gguf"))
    if len(found) > 1:
        raise UserError(f"{path}: has {len(found)} GGUF files; name one, such as {path / found[0]}")
    return (str(path), found[0]) if found else None


def file_of(source: str, name: str) -> Path | None:
    """Return a file of a model, given its name on the hub or its local folder; None if the model has no such file.

    Raises: UserError if the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = package("huggingface_hub", f"model '{source}'")
    try:
        return Path(hub.hf_hub_download(source, name))
    except Exception as error:  # the hub and the network raise many kinds
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:  # the latter: no connection
            return None
        raise UserError(f"model '{source}': its {name} cannot be reached [{reason(error)}]") from None
