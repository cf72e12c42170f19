"""Exceptions for mistakes that the user can fix, and helpers for their messages."""

import difflib
from collections.abc import Iterable

HF_EXTRA = "pip install 'gradroute[hf]'"  # installs the Hugging Face packages


class UserError(Exception):
    """A mistake in a configuration, a command or a file: one line that says where, what is wrong, and how to fix it.

    The command line prints it and exits with status 2.
    """


class MachineError(UserError):
    """A failure of the machine, such as of its memory or its disk: the same run may succeed when it is tried again."""


def plain_text(text: object) -> str:
    """Escape control characters, which could move a terminal's cursor or change its colours."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, empty if it has none."""
    return (str(error).splitlines() or [""])[0]


def nearest(name: object, valid: Iterable[object]) -> list[str]:
    """Return up to three valid names that resemble `name`, best first."""
    return difflib.get_close_matches(str(name), [str(v) for v in valid], n=3, cutoff=0.65)


def unknown(what: str, name: object, valid: Iterable[object]) -> UserError:
    """Return the error for a name that does not exist, with the nearest valid names."""
    names = [str(v) for v in valid]
    near = nearest(name, names)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"valid: {', '.join(names[:20]) or 'none'}" + (", …" if len(names) > 20 else "")
    return UserError(f"unknown {what} '{name}'; {hint}")
