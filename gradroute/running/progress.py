"""Show the progress of a run: a bar on a terminal, plain lines elsewhere."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bar
from rich.table import Table

from gradroute.reporting.terminal import Terminal
from gradroute.running.exit_status import CLOSED_PIPE
from gradroute.training.objectives import Term

TITLES = {
    "mse": "mean squared error on the test images (pixels in [-1, 1])",
    "accuracy": "accuracy on the test images (0 to 1)",
    "return": "discounted true return, mean over the steps of all test worlds",
    "cross_entropy": "cross-entropy on the test documents (nats per token)",
}


def describe(means: dict[Term, float]) -> str:
    """Return the losses of an epoch on one line."""
    return "  ".join(
        f"{term.head} {term.metric} {term.group if term.region == 'all' else term.region} {mean:.4f}"
        for term, mean in means.items()
        if term.head != "penalty"
    )


class Progress:
    """A bar with the time left on a terminal, one line per epoch elsewhere; every line also goes to the log.

    With `quiet`, lines go to the log only: of runs that are trained together, only the first one is shown.
    """

    def __init__(self, log: Callable[[str], None], quiet: bool = False) -> None:
        self._log = log
        self._console = Terminal(quiet=quiet)
        if not self._console.is_terminal:
            self._console = Terminal(width=160, quiet=quiet)
        self._bar: Bar | None = None
        self._title = ""

    @contextmanager
    def running(self, title: str) -> Iterator[None]:
        """Show the epochs inside the context under `title`."""
        self._title = title
        if not self._console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Bar(*columns, TimeRemainingColumn(), TextColumn("{task.fields[losses]}"), console=self._console) as bar:
            bar.add_task(title, total=None, losses="")
            self._bar = bar
            yield
        self._bar = None

    def say(self, line: str) -> None:
        """Show a line that says what was decided."""
        self._log(line)
        self._print(line)

    def epoch(self, epoch: int, epochs: int, means: dict[Term, float]) -> None:
        """Show the mean losses of an epoch that ended."""
        line = f"{self._title}: epoch {epoch}/{epochs}  {describe(means)}"
        self._log(line)
        if self._bar:
            self._bar.update(self._bar.task_ids[0], total=epochs, completed=epoch, losses=describe(means))
        else:
            self._print(line)

    def _print(self, what: str | Table) -> None:
        """Print to the terminal; a closed pipe ends the command, a closed terminal only the printing."""
        options: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": isinstance(what, str)}
        try:
            self._console.print(what, **options)
        except BrokenPipeError:
            raise SystemExit(CLOSED_PIPE) from None
        except OSError:  # the terminal is closed
            self._console = Terminal(quiet=True)

    def headline(self, path: Path, final: Sequence[dict[str, Any]], groups: Sequence[str]) -> None:
        """Print the run's main results, one row per head and one column per group, and its folder."""
        metric = next((m for m in TITLES if any(row["metric"] == m for row in final)), "cross_entropy")
        table = Table()
        table.add_column("head")
        table.add_column("region")
        if not any(row["group"] in groups for row in final if row["metric"] == metric):
            groups = ["all"]
        for group in groups:
            table.add_column(group, justify="right")
        values = {(r["head"], r["region"], r["group"]): r["value"] for r in final if r["metric"] == metric}
        if not values:  # not evaluated
            self._print(str(path))
            return
        for head, region in dict.fromkeys((h, r) for h, r, _ in values):
            cells = [f"{values[head, region, g]:.3f}" if (head, region, g) in values else "" for g in groups]
            table.add_row(head, region, *cells)
        for line in (TITLES[metric], table, str(path)):
            self._print(line)
