"""How a command ends: mistakes in one line, and the exit status that says whose they were."""

import os
import re
import sys
from collections.abc import Callable
from dataclasses import fields

from gradroute.errors import UserError, nearest, plain_text


def one_line(error: BaseException) -> str:
    """Hydra's and OmegaConf's messages carry their cause in the lines below the first; keep what says most."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if error.__cause__ is not None and "Could not override" in str(error):
        lines += [line.strip() for line in str(error.__cause__).splitlines()[:1]]
    kept = [
        line for line in lines if not line.startswith(("full_key:", "object_type=", "reference_type=", "To append"))
    ]
    return " ".join(dict.fromkeys(kept)) or type(error).__name__


def _suggest(message: str) -> str:
    """Add the nearest valid key to Hydra's report of an unknown one."""
    from gradroute.config.schema import Config

    if launcher := re.search(r"Could not find 'hydra/launcher/((joblib|submitit|ray)\w*)'", message):
        extra = {"submitit": "slurm"}.get(launcher[2], launcher[2])
        return f"hydra/launcher={launcher[1]}: its package is not installed: pip install 'gradroute[{extra}]'"
    found = re.search(r"Could not override '([^']+)'", message)
    if not found:
        return message
    valid: list[str] = []
    for entry in fields(Config):
        valid.append(entry.name)
        nested = getattr(entry.default_factory, "__dataclass_fields__", {})
        valid += [f"{entry.name}.{name}" for name in nested]
    near = nearest(found[1], valid)
    return f"unknown key '{found[1]}'; " + (f"did you mean {' or '.join(near)}?" if near else "see --cfg job")


LONGEST = 1000  # characters of a message; what was given may be longer


def _from_hydra(error: BaseException) -> bool:
    """Whether Hydra or OmegaConf raised it: some overrides end in their plain ValueError or TypeError."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
    return module.partition(".")[0] in ("hydra", "omegaconf", "antlr4")


def report_failure(error: Exception) -> int:
    """Print an error in one line; returns the exit status it stands for."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    mistake = isinstance(error, UserError | HydraException | OmegaConfBaseException) or _from_hydra(error)
    line = plain_text(_suggest(one_line(error)))
    print(f"error: {line if len(line) <= LONGEST else line[:LONGEST] + ' …'}", file=sys.stderr)
    if not mistake:
        print("(the traceback is shown with HYDRA_FULL_ERROR=1)", file=sys.stderr)
    return 2 if mistake else 1


def guarded(action: Callable[[], None]) -> int:
    """Run a command; returns its exit status: 0 done, 2 the user's mistake, 1 failure, 130 or 143 interrupted.

    A traceback is shown only with `HYDRA_FULL_ERROR=1`.
    """
    wants_traceback = os.environ.get("HYDRA_FULL_ERROR") == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # makes Hydra hand errors to us instead of printing them
    try:
        action()
        return 0
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if wants_traceback:
            raise
        return report_failure(error)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR")
        if wants_traceback:
            os.environ["HYDRA_FULL_ERROR"] = "1"
