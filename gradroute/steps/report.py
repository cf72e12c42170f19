"""Draw the plots of a run and write its page, from the files in its folder."""

from collections.abc import Iterable
from dataclasses import dataclass

from gradroute.config.doors import TARGET
from gradroute.config.targets import arguments_of, locate
from gradroute.reporting.plots import Drawing, draw
from gradroute.reporting.run_page import run_page
from gradroute.steps.base import RunState, Step
from gradroute.training.training import Training


@dataclass
class Report(Step):
    """Write `plots/` and `report.html`."""

    def run(self, run: RunState) -> Iterable[Training]:
        """Draw the task's plots and those that the configuration adds, and write the page."""
        drawings = [Drawing(locate(target, "task.plots"), {}) for target in run.task.plots]
        for place, component in enumerate(run.config.plots):
            found = locate(component[TARGET], f"plots.{place}")
            drawings.append(Drawing(found, arguments_of(component)))
        captions = draw(run.folder.path, drawings)
        run_page(run.folder.path, captions)
        return ()
