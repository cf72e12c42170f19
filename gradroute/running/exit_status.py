"""End a command: report an error in one line, and choose the exit status."""

import gc
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

from gradroute.config.schema import Config
from gradroute.errors import UserError, nearest, plain_text, unknown

LONGEST = 1000  # characters of a message, which may quote long input
CLOSED_PIPE = 141  # 128 + SIGPIPE, as in a shell
READERS = ("hydra", "omegaconf", "antlr4", "yaml")  # packages that parse the user's input


def one_line(error: BaseException) -> str:
    """Return an error's message on one line; for Hydra and OmegaConf, only the lines that matter."""
    if said := _of_override(error) or _of_option(error) or _of_yaml(error):
        return said
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error.__cause__ is not None and str(error).startswith(("Could not override", "Error merging override")):
        lines += [line.strip() for line in str(error.__cause__).splitlines()[:1]]
    kept = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "To append"))
    ]
    return " ".join(dict.fromkeys(kept)) or type(error).__name__


def _of_override(error: BaseException) -> str | None:
    """Say what is wrong with an override that Hydra cannot parse, and how to quote it; None for another error."""
    from hydra.errors import OverrideParseException

    if not isinstance(error, OverrideParseException):
        return None
    override = str(error.override).strip("\"'")
    key, equals, value = override.partition("=")
    if not equals:
        return f"{override}: is not an override; give key=value, and quote a value with spaces: 'output_dir=my runs'"
    if re.search(r"\s$|^\s", key) or not key:
        return f"{override}: is not an override; give key=value without spaces around ="
    bare = value.strip("\"'").replace("\\", "\\\\").replace('"', '\\"')
    return f"{override}: the value cannot be read; quote a text with special characters: '{key}=\"{bare}\"'"


def _of_option(error: BaseException) -> str | None:
    """Suggest an option if the one given is not in its group of configurations; None for another error."""
    from hydra.errors import MissingConfigException

    found = re.search(r"In '(.+)': .*\n+Available options in '(.+)':", str(error))
    if not isinstance(error, MissingConfigException) or not found or found[2] == "hydra/launcher":  # left to `_suggest`
        return None
    option = str(error.missing_cfg_file).removeprefix(f"{found[2]}/")
    what = unknown(f"value of {found[2]}:", option, [name for name in error.options or () if name[0] != "_"])
    return str(what) if found[1] == "config" else f"{found[1]}: {what}"


def _of_yaml(error: BaseException) -> str | None:
    """Say what is wrong with a YAML file, and where; None for another error."""
    import yaml

    if not isinstance(error, yaml.YAMLError):
        return None
    mark = getattr(error, "problem_mark", None)
    where = f"{mark.name}, line {mark.line + 1}: " if mark is not None else ""
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    hint = "; indent with spaces, not tabs" if "\\t" in problem or (mark is not None and _tab_at(mark)) else ""
    return f"{where}is not valid YAML ({problem}){hint}"


def _tab_at(mark: Any) -> bool:
    """Return whether a line of a YAML file begins with a tab; OmegaConf 2.4 does not say which character is wrong."""
    try:
        line = Path(mark.name).read_text().splitlines()[mark.line]
    except (OSError, ValueError, IndexError):
        return False
    return "\t" in line[: len(line) - len(line.lstrip())]


def _known_keys(kind: Any, prefix: str = "", depth: int = 3) -> list[str]:
    """Return every key of a dataclass of the schema, nested ones included."""
    found = []
    for entry, hint in ((entry, get_type_hints(kind)[entry.name]) for entry in fields(kind)):
        found.append(f"{prefix}{entry.name}")
        if is_dataclass(hint) and depth:
            found += _known_keys(hint, f"{prefix}{entry.name}.", depth - 1)
    return found


def _suggest(message: str, cause: BaseException | None) -> str:
    """Add the nearest valid key to Hydra's report of an unknown one, which may lie inside of a mapping."""
    if launcher := re.search(r"Could not find 'hydra/launcher/((joblib|submitit|ray)\w*)'", message):
        extra = {"submitit": "slurm"}.get(launcher[2], launcher[2])
        return f"hydra/launcher={launcher[1]}: its package is not installed; use pip install 'gradroute[{extra}]'"
    found = re.search(r"Could not override '([^']+)'", message)
    if not found:
        return message
    key = getattr(cause, "full_key", None) or found[1]
    near = nearest(key, _known_keys(Config))
    return f"unknown key '{key}'; " + (f"did you mean {' or '.join(near)}?" if near else "use --cfg job")


def _while_reading(error: BaseException) -> bool:
    """Return whether Hydra raised the error while it read files and overrides, not our code that it called."""
    trace, last = error.__traceback__, ""
    while trace is not None:
        package = str(trace.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        last = package if package in (*READERS, "gradroute") else last
        trace = trace.tb_next
    return last in READERS


def mistake_of(error: Exception) -> UserError | None:
    """Return the user's mistake that an error of ours, of Hydra or of OmegaConf reports, in one line, or None."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, UserError):
        return error
    mistake = isinstance(error, HydraException | OmegaConfBaseException) or _while_reading(error)
    return UserError(_suggest(one_line(error), error.__cause__)) if mistake else None


def report_failure(error: Exception) -> int:
    """Print an error in one line and return the exit status for it."""
    mistake = mistake_of(error)
    line = plain_text(one_line(mistake or error))
    print(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + ' …'}", file=sys.stderr)
    if not mistake:
        print("(set HYDRA_FULL_ERROR=1 to see the traceback)", file=sys.stderr)
    return 2 if mistake else 1


def _close_quietly() -> None:
    """Redirect a standard output that nobody reads to the null device, so that exiting raises no error."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
    except (OSError, ValueError):  # a stream without a file
        pass


def _open_closed() -> None:
    """Redirect a standard output or error that the shell closed (`>&-`) to the null device."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 # open until the process ends


@contextmanager
def unwarned() -> Iterator[None]:
    """Show no warnings inside the block, unless Python was told to show some by `-W` or `PYTHONWARNINGS`.

    They are for whoever writes code, not for those who run commands. A filter that makes one an error still does.
    """
    shown = warnings.showwarning
    if not sys.warnoptions:
        warnings.showwarning = lambda *args, **options: None
    try:
        yield
    finally:
        warnings.showwarning = shown


@contextmanager
def importing() -> Iterator[None]:
    """Look for no garbage inside the block, if torch is imported there; what it makes stays, and is passed over later.

    Garbage collection is a tenth of the time of a short run, and nearly all that it looks at are modules and classes.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def guarded(action: Callable[[], None]) -> int:
    """Run a command and return its exit status.

    0: done; 1: failed; 2: the user's mistake; 130 or 143: interrupted; 141: the output was closed. A traceback is shown
    only with `HYDRA_FULL_ERROR=1`.
    """
    _open_closed()
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra raise errors instead of printing them
    try:
        with unwarned():
            action()
        sys.stdout.flush()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        _close_quietly()
        return CLOSED_PIPE
    except SystemExit as ended:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            _close_quietly()
            return CLOSED_PIPE
        if ended.code == CLOSED_PIPE:
            _close_quietly()
        raise
    except Exception as error:
        if wants_traceback:
            raise
        return report_failure(error)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wants_traceback:
            os.environ["HYDRA_FULL_ERROR"] = "1"
