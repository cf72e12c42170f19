"""Print tables and lines to a terminal or a pipe, with rich."""

import sys

from rich.console import Console


class Terminal(Console):
    """A rich console that raises BrokenPipeError if nobody reads its pipe any more, as `print` does."""

    def on_broken_pipe(self) -> None:
        """Raise BrokenPipeError, for which `gradroute.running.exit_status` has a status; rich would exit with 1."""
        raise BrokenPipeError


def terminal(piped: int) -> Terminal:
    """Return a console as wide as the terminal, or `piped` columns wide if the output is not a terminal."""
    return Terminal() if sys.stdout.isatty() else Terminal(width=piped)
