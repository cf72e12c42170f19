"""The one exception for mistakes that the user can mend."""

import difflib
from collections.abc import Iterable

HF_EXTRA = "pip install 'gradroute[hf]'"  # what brings the packages of Hugging Face


class UserError(Exception):
    """A mistake in a configuration, a command or a file: one line that says what, where, and what is right.

    The command line prints it and exits with status 2.
    """


class MachineError(UserError):
    """What failed was the machine, such as its memory or its disk: the same may work when it is tried again."""


def plain_text(text: object) -> str:
    """Text for a terminal: control characters, which could move its cursor or colour it, as escapes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def first_line(error: BaseException) -> str:
    """The first line of an error's message, empty if it has none."""
    return (str(error).splitlines() or [""])[0]


def nearest(name: object, valid: Iterable[object]) -> list[str]:
    """The valid names that look most like one that is not, best first."""
    return difflib.get_close_matches(str(name), [str(v) for v in valid], n=3, cutoff=0.65)


def unknown(what: str, name: object, valid: Iterable[object]) -> UserError:
    """Build the error for a name that does not exist, with the nearest valid ones."""
    names = [str(v) for v in valid]
    near = nearest(name, names)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"valid: {', '.join(names[:20]) or 'none'}" + (", …" if len(names) > 20 else "")
    return UserError(f"unknown {what} '{name}'; {hint}")
