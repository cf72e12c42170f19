"""Draw why a mask was chosen: the candidates' agreement and ablations, and the shares of groups in the units."""

import matplotlib

matplotlib.use("Agg")  # draws without a display
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from gradroute.comparison.plots import png
from gradroute.search.found import Evidence, Found

SHOWN = 12  # candidates
PICTURED = 4  # candidates whose units are drawn


def picture(found: Found) -> bytes:
    """Return the picture of a mask, as PNG: one row for the candidates, and one for each that was ablated."""
    order = sorted(
        found.evidence, key=lambda one: (one is not found.site, -(one.score or -1e9), -(one.conflict or 0.0))
    )
    drawn = [one for one in order if one.score is not None][:PICTURED] or [found.site]
    height = 1.2 + 0.28 * min(SHOWN, len(order)) + 1.9 * len(drawn)
    ratios = [1.0 + 0.28 * min(SHOWN, len(order)), *[1.9] * len(drawn)]
    figure = plt.figure(figsize=(9, height), layout="constrained")
    grid = figure.add_gridspec(1 + len(drawn), 1, height_ratios=ratios)
    _candidates(figure.add_subplot(grid[0]), order[:SHOWN], found.site)
    for place, one in enumerate(drawn, 1):
        _units(figure.add_subplot(grid[place]), one, found.groups, one is found.site)
    return png(figure)


def _candidates(axes: Axes, shown: list[Evidence], chosen: Evidence) -> None:
    rows = list(range(len(shown)))
    axes.barh([r + 0.27 for r in rows], [one.conflict or 0.0 for one in shown], 0.26, label="conflict of gradients")
    axes.barh(rows, [one.overlap or 0.0 for one in shown], 0.26, label="overlap of gradients")
    checked = [r for r in rows if shown[r].score is not None]
    axes.barh([r - 0.27 for r in checked], [shown[r].score or 0.0 for r in checked], 0.26, label="score by ablation")
    axes.set_yticks(rows, [f"{one.name} ← chosen" if one is chosen else one.name for one in shown], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(0, color="black", linewidth=0.5)
    axes.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)  # above, off the bars


def _units(axes: Axes, one: Evidence, groups: list[str], chosen: bool) -> None:
    """Draw each group's share of every unit's gradient norm, units sorted by their group and its share."""
    order = sorted(range(len(one.owner)), key=lambda unit: (one.owner[unit], -one.shares[one.owner[unit]][unit]))
    for group, name in enumerate(groups):
        own = [place for place, unit in enumerate(order) if one.owner[unit] == group]
        colour = f"C{group % 10}"
        axes.plot([one.shares[group][unit] for unit in order], ".", markersize=3, color=colour, label=name)
        axes.axvspan(own[0] - 0.5, own[-1] + 0.5, color=colour, alpha=0.12, linewidth=0)
    axes.set_title(f"{one.name}{', chosen' if chosen else ''}: shares of the groups in each unit", fontsize=9)
    axes.set_xlabel("units, sorted; shaded: the group that gets them", fontsize=8)
    axes.legend(fontsize=7, ncols=min(5, len(groups)))
