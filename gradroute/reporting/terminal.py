"""Tables and lines on the terminal, or in a pipe, by rich."""

import sys

from rich.console import Console


class Terminal(Console):
    """rich's console, but for a pipe that nobody reads any more: that raises BrokenPipeError, as `print` does."""

    def on_broken_pipe(self) -> None:
        """Do not exit with status 1: `gradroute.running.exit_status` has another for it."""
        raise BrokenPipeError


def terminal(piped: int) -> Terminal:
    """As wide as the terminal; `piped` columns where the output is none."""
    return Terminal() if sys.stdout.isatty() else Terminal(width=piped)
