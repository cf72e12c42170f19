"""Draw the plots of a run and write its page, from the files in its folder."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from gradroute.reporting.report import report
from gradroute.steps.base import RunState, Step
from gradroute.training.training import Training


@dataclass
class Report(Step):
    """Write `plots/` and `report.html`."""

    def run(self, run: RunState) -> Iterable[Training]:
        """Draw the task's plots and those that the configuration adds, and write the page."""
        self.apart(run)()
        return ()

    def apart(self, run: RunState) -> Callable[[], None]:
        """Return the same work as a call that needs the files alone."""
        return partial(report, run.folder.path, run.task.plots, run.config.plots)
