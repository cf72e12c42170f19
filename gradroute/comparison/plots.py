"""Plots of a comparison: one panel for each head, region and group, against what was swept."""

import io
import math
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use("Agg")  # draw to files; no display is needed
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradroute.comparison.runs import natural

if TYPE_CHECKING:
    import pandas as pd

matplotlib.rcParams["text.parse_math"] = False  # show a dollar sign in a name as it is

FIXED = ("head", "region", "group", "mean", "half_width", "n", "published", "agrees")
PANELS = 24  # more would be unreadable


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def short(key: str) -> str:
    """Return the end of a dotted key, short enough for an axis."""
    return ".".join(key.split(".")[-2:])


def png(figure: Figure) -> bytes:
    """Return a figure as PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, format="png")
    plt.close(figure)
    return buffer.getvalue()


def _against_one(axes: Axes, rows: list[dict[str, Any]], key: str) -> None:
    """Draw means with their intervals against the one swept setting."""
    rows = sorted(rows, key=lambda row: natural(row[key]))
    places = [_number(row[key]) for row in rows]
    line = "-"
    if any(isinstance(place, str) for place in places):
        line = "none"  # names are not on a scale
        axes.set_xticks(range(len(rows)), [row[key] for row in rows], rotation=30, ha="right", fontsize=8)
        places = list(range(len(rows)))
    halves = [0 if math.isnan(row["half_width"]) else row["half_width"] for row in rows]
    axes.errorbar(places, [row["mean"] for row in rows], yerr=halves, marker="o", capsize=3, linestyle=line)
    published = [row["published"] for row in rows]
    axes.plot(places, published, linestyle="none", marker="_", markersize=14, color="black")
    axes.set_xlabel(short(key), fontsize=8)
    axes.set_ylim(bottom=0)


def _against_two(axes: Axes, rows: list[dict[str, Any]], keys: list[str]) -> None:
    """Draw a heat map of the means over the two swept settings."""
    labels = [sorted({row[key] for row in rows}, key=natural) for key in keys]
    grid = [[math.nan] * len(labels[0]) for _ in labels[1]]
    for row in rows:
        grid[labels[1].index(row[keys[1]])][labels[0].index(row[keys[0]])] = row["mean"]
    shown = axes.imshow(grid, aspect="auto", cmap="viridis")
    axes.set_xticks(range(len(labels[0])), labels[0], rotation=30, ha="right", fontsize=8)
    axes.set_yticks(range(len(labels[1])), labels[1], fontsize=8)
    axes.set_xlabel(short(keys[0]), fontsize=8)
    axes.set_ylabel(short(keys[1]), fontsize=8)
    axes.figure.colorbar(shown, ax=axes)


def draw(table: "pd.DataFrame", metric: str) -> dict[str, bytes]:
    """Return PNG images by name: small multiples over one swept setting, heat maps over two; more are joined to one."""
    swept = [str(column) for column in table.columns if column not in FIXED]
    keys = [key for key in swept if table[key].nunique() > 1] or ["experiment"]
    if "experiment" in keys and len(keys) > 1:  # the experiment's name stands for its settings
        keys = ["experiment"]
    elif len(keys) > 2:
        joined = table[keys].astype(str).agg(", ".join, axis=1)
        table, keys = table.assign(settings=joined), ["settings"]
    panels = list(table.groupby(["head", "region", "group"], sort=False))[:PANELS]
    columns = min(4, len(panels))
    lines = math.ceil(len(panels) / columns)
    size = (3.4 * columns, 3.0 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, ((head, region, group), part) in zip(grid.flat, panels, strict=False):
        rows = [{str(key): value for key, value in row.items()} for row in part.to_dict("records")]
        _against_one(axes, rows, keys[0]) if len(keys) == 1 else _against_two(axes, rows, keys)
        axes.set_title(f"{head} {region}\n{group}", fontsize=9)
    figure.suptitle(f"{metric}; bars: 95 % interval over seeds; dashes: published")
    return {"comparison": png(figure)}
