"""Report a run from its folder: draw its plots and write its page. Another process can do it as well."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.config.doors import TARGET
from gradroute.config.targets import arguments_of, locate
from gradroute.reporting.plots import Drawing, draw
from gradroute.reporting.run_page import run_page


def report(folder: Path, plots: Sequence[str], own: Sequence[Mapping[str, Any]]) -> None:
    """Write `plots/` and `report.html`.

    Args:
        plots: import paths of the task's plots. own: components of the configuration's plots.

    Raises: UserError for a plot that cannot be found or drawn, or damaged files.
    """
    drawings = [Drawing(locate(target, "task.plots"), {}) for target in plots]
    for place, component in enumerate(own):
        drawings.append(Drawing(locate(component[TARGET], f"plots.{place}"), arguments_of(component)))
    run_page(folder, draw(folder, drawings))
