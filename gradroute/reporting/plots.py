"""Draw the plots of a run from its folder alone, as PNG and as SVG."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draw to files; no display is needed
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gradroute.config.targets import construct
from gradroute.errors import UserError
from gradroute.records.audits import FILE
from gradroute.reporting import plots_audit, plots_common
from gradroute.reporting.animation import Animation
from gradroute.reporting.run_data import RunData

matplotlib.rcParams["text.parse_math"] = False  # show a dollar sign in a name as it is


class Plot(ABC):
    """A plot with arguments of its own. A function `(run: RunData, …) -> Figure | Animation | None` works as well.

    The file is named after the class or function, and the first line of its docstring is the caption on the page.
    """

    @abstractmethod
    def __call__(self, run: RunData) -> Figure | Animation | None:
        """Return the figure or animation, or None if this run has nothing to draw."""


@dataclass(frozen=True)
class Drawing:
    """A plot to draw, with the arguments that the configuration gives it."""

    plot: Any
    arguments: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of its file, without the suffix."""
        return str(self.plot.__name__)

    @property
    def caption(self) -> str:
        """The caption on the page."""
        return (inspect.getdoc(self.plot) or self.name).partition("\n")[0].rstrip(".")

    def draw(self, run: RunData, key: str) -> Figure | Animation | None:
        """Return what is drawn, or None. Raises: UserError if the plot returns anything else or cannot be drawn."""
        if inspect.isclass(self.plot):
            drawn = construct(self.plot, self.arguments, key)(run)
        else:
            drawn = construct(self.plot, self.arguments, key, run=run)
        if drawn is not None and not isinstance(drawn, Figure | Animation):
            raise UserError(f"{key}: {self.name} returns a {type(drawn).__name__}; return a matplotlib Figure or None")
        return drawn


def _common(run: RunData) -> dict[str, Callable[[], Figure | None]]:
    """Return functions that draw the plots of every run, by name."""
    found: dict[str, Callable[[], Figure | None]] = {}
    if run.ledger:
        found["ledger"] = lambda: plots_common.ledger(run)
    if any(key.startswith("mask/") for key in run.arrays):
        found["mask"] = lambda: plots_common.mask(run)
    sites = [key.removeprefix("encoding/") for key in run.arrays if key.startswith("encoding/")]
    if (run.folder / FILE).is_file():
        found["recovery"] = lambda: plots_audit.recovery(run)
    return found | {f"encoding_{site}": (lambda s=site: plots_common.encoding(run, s)) for site in sites}


def draw(folder: Path, drawings: Sequence[Drawing]) -> dict[str, str]:
    """Write plots to `plots/`; return the captions, by name, of the given plots that had something to draw.

    Raises: UserError if the run's files are damaged, or two plots have one name.
    """
    run, captions = RunData(folder), dict[str, str]()
    place = folder / "plots"
    place.mkdir(exist_ok=True)
    common = _common(run)
    for number, drawing in enumerate(drawings):
        if drawing.name in captions or drawing.name in common:
            raise UserError(f"plots: two plots are called {drawing.name}; give each its own name")
        figure = drawing.draw(run, f"plots.{number}")
        if figure is not None:
            _save(figure, place, drawing.name)
            captions[drawing.name] = drawing.caption
    for name, make in common.items():
        figure = make()
        if figure is not None:
            _save(figure, place, name)
    return captions


def _save(drawn: Figure | Animation, folder: Path, name: str) -> None:
    """Write a figure as PNG and as SVG, with one layout. With an engine, `savefig` would draw twice for each.

    The PNG of an animation is animated; its SVG is the last frame.
    """
    figure = drawn.figure if isinstance(drawn, Animation) else drawn
    figure.set_dpi(130)
    if (engine := figure.get_layout_engine()) is not None:
        engine.execute(figure)
        figure.set_layout_engine(None)
    if isinstance(drawn, Animation):
        drawn.save(folder / f"{name}.png")
    else:
        figure.savefig(folder / f"{name}.png", dpi=130)
    figure.savefig(folder / f"{name}.svg", dpi=100)  # of the images in it
    plt.close(figure)
