"""What the packages of Hugging Face have in common: how they are asked for, kept quiet, and what went wrong in them."""

import importlib
import logging
import sys
from pathlib import Path
from types import ModuleType

from gradroute.errors import HF_EXTRA, UserError, plain_text


def package(name: str, what: str) -> ModuleType:
    """A package of the extra, which says errors only and draws no bars where nobody looks.

    Raises: UserError if it is missing; `what` needs it.
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


def reason(error: BaseException) -> str:
    """The first line of what a package says, up to where it becomes a list."""
    return plain_text((str(error).strip().splitlines() or [type(error).__name__])[0])[:300]


def file_of(source: str, name: str) -> Path | None:
    """A file of a model by the model's name on the hub, or its local folder; None if it has none of that name.

    Raises: UserError if the hub cannot be reached.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder / name if (folder / name).is_file() else None
    hub = package("huggingface_hub", f"model '{source}'")
    try:
        return Path(hub.hf_hub_download(source, name))
    except Exception as error:  # whatever the hub or the network raise
        kinds = [kind.__name__ for kind in type(error).__mro__]
        if "EntryNotFoundError" in kinds and "LocalEntryNotFoundError" not in kinds:  # the latter: it cannot be asked
            return None
        raise UserError(f"model '{source}': its {name} cannot be reached [{reason(error)}]") from None
