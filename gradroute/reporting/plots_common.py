"""Draw the plots of every run: what units encode, the mask, and the ledger."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from gradroute.reporting.run_data import LINE_STYLES, RunData


def encoding(run: RunData, site: str) -> Figure:
    """Draw a site's activations, one row per test image, sorted by label, with the regions marked above."""
    values, labels = run.arrays[f"encoding/{site}"], run.arrays["encoding_labels"]
    values = values.reshape(len(values), -1, values.shape[-1]).mean(1)
    limit = float(np.quantile(np.abs(values), 0.99)) or 1.0
    figure, axes = plt.subplots(figsize=(8, 6.5), layout="constrained")
    norm = TwoSlopeNorm(0, -limit, limit)
    shown = axes.imshow(values, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    figure.colorbar(shown, label="activation (colours clipped at the 99 % quantile)", extend="both")
    starts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    ends = [*starts[1:], len(labels)]
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    axes.set_yticks(middles, [str(int(label)) for label in np.unique(labels)])
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="black", linewidth=0.4)
    axes.set_ylabel(f"test images sorted by {run.noun}")
    axes.set_xlabel(f"unit of {site}")
    regions = run.names["regions"]
    crowded = max(map(len, regions)) * len(regions) > 70  # names side by side would overlap
    names: dict[str, Any] = {"ha": "left", "rotation": 40, "fontsize": 8} if crowded else {"ha": "center"}
    for region, place in regions.items():
        if site in place["sites"]:
            units = place["units"]
            axes.plot(
                [min(units) - 0.4, max(units) + 0.4],
                [-0.012 * len(labels)] * 2,
                color=run.colour(region),
                linewidth=5,
                clip_on=False,
                solid_capstyle="butt",
            )
            axes.text(
                float(np.mean(units)),
                -0.025 * len(labels),
                region,
                color=run.colour(region),
                va="bottom",
                **names,
            )
    axes.set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"What each unit of {site} encodes")
    return figure


def mask(run: RunData) -> Figure:
    """Draw the gradient weight of every group at every unit of every site; sites of equal masks once."""
    alike: dict[tuple[tuple[int, ...], bytes], list[str]] = {}
    for key, mask in run.arrays.items():
        if key.startswith("mask/"):
            alike.setdefault((mask.shape, mask.tobytes()), []).append(key.removeprefix("mask/"))
    sites = list(alike.values())
    groups = run.names["groups"]
    figure, grid = plt.subplots(
        len(sites),
        1,
        figsize=(9, len(sites) * (1.4 + 0.35 * len(groups))),
        squeeze=False,
        layout="constrained",
    )
    for axes, (site, *others) in zip(grid[:, 0], sites, strict=True):
        mask = run.arrays[f"mask/{site}"]
        top = max(1.0, float(np.abs(mask).max()))
        shown = axes.imshow(mask, aspect="auto", cmap="PRGn", vmin=-top, vmax=top, interpolation="nearest")
        axes.set_yticks(range(len(groups)), groups)
        also = f" … {others[-1]} ({len(others) + 1} sites)" if others else ""
        axes.set_xlabel(f"unit of {site}{also}")
        rows, units = mask.shape
        if units <= 128:  # lines between cells; as ticks they would take seconds
            axes.vlines(np.arange(1, units) - 0.5, -0.5, rows - 0.5, color="white", linewidth=0.8)
            axes.hlines(np.arange(1, rows) - 0.5, -0.5, units - 0.5, color="white", linewidth=0.8)
        figure.colorbar(shown, ax=axes, label="gradient weight")
    figure.suptitle("Which group's gradients reach which units")
    return figure


def ledger(run: RunData) -> Figure:
    """Draw, by window, what reached each region from each group through the mask, and how far its parameters moved."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    groups = list(dict.fromkeys(r["group"] for r in run.ledger if r["group"] != "all"))
    came = [r for r in run.ledger if r["routed"] is not None]
    for group, region in dict.fromkeys((r["group"], r["region"]) for r in came):
        rows = [r for r in came if (r["group"], r["region"]) == (group, region)]
        style = LINE_STYLES[groups.index(group) % 4]
        _windows(left, rows, "routed", run.colour(region), style, f"{group} in {region}")
    moved = [r for r in run.ledger if r["moved"] is not None]
    for region in dict.fromkeys(r["region"] for r in moved):
        _windows(right, [r for r in moved if r["region"] == region], "moved", run.colour(region), "-", region)
    left.set_ylabel("gradient through the mask (L2 norm)")
    right.set_ylabel("parameter change in a window (L2 norm)")
    left.set_ylim(bottom=-0.03 * left.get_ylim()[1])  # a line at exactly 0 stays visible
    if all(r["moved"] > 0 for r in moved):
        right.set_yscale("log")
        right.yaxis.set_major_formatter(LogFormatter())  # the default formatter writes mathtext
        right.yaxis.set_minor_formatter(LogFormatter())
    for axes in (left, right):
        axes.set_xlabel("optimizer step at the window's end")
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
    if not came:
        left.text(0.5, 0.5, "no region: nothing is routed", ha="center", transform=left.transAxes)
    figure.suptitle("Ledger: which group's gradients reached which region, and how far it moved")
    return figure


def _windows(axes: Axes, rows: list[dict[str, Any]], column: str, colour: str, style: str, name: str) -> None:
    marker = "o" if len(rows) < 12 else None
    steps, values = [r["to_step"] for r in rows], [r[column] for r in rows]
    axes.plot(steps, values, color=colour, linestyle=style, marker=marker, markersize=4, label=name, clip_on=False)
