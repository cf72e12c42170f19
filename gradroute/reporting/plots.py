"""The plots of a run, drawn from its folder alone (after GR figure 3)."""

from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")  # no screen is needed, nor asked for
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from gradroute.reporting.plots_classification import classification_figures
from gradroute.reporting.plots_language import language_figures
from gradroute.reporting.run_data import LINE_STYLES, Scene

matplotlib.rcParams["text.parse_math"] = False  # a dollar in a name is a dollar


def loss_per_label(scene: Scene) -> Figure:
    """Test MSE of decoder and certificates for each label (GR figure 3b)."""
    heads = [h for h in scene.heads if h[0] in ("decoder", "certificate")]
    labels = [int(label) for label in scene.arrays["image_labels"]]
    values = {(r["head"], r["region"], r["group"]): r["value"] for r in scene.final if r["metric"] == "mse"}
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(heads)
    for i, (head, region) in enumerate(heads):
        heights = [values[head, region, f"{scene.noun}_{label}"] for label in labels]
        at = np.arange(len(labels)) + (i - (len(heads) - 1) / 2) * width
        axes.bar(at, heights, width, color=scene.colour(region), label=scene.title(head, region))
    ticks = [
        f"{label}\n{scene.group_of(label)}" if _starts(scene, labels, i) else str(label)
        for i, label in enumerate(labels)
    ]
    axes.set_xticks(range(len(labels)), ticks)
    axes.set_xlabel(f"{scene.noun}, with its group below the group's first")
    axes.set_ylabel("test MSE (squared pixel, pixels in [−1, 1])")
    axes.set_title(f"Reconstruction error by {scene.noun}")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _starts(scene: Scene, labels: list[int], i: int) -> bool:
    return i == 0 or scene.group_of(labels[i]) != scene.group_of(labels[i - 1])


def reconstruction_grid(scene: Scene) -> Figure:
    """One test image per label through every head (GR figure 3c)."""
    rows = [("input", scene.arrays["images"])]
    rows += [(scene.title(h, r), scene.arrays[f"head/{h}/{r}"]) for h, r in scene.heads]
    labels = scene.arrays["image_labels"]
    figure, grid = plt.subplots(
        len(rows),
        len(labels),
        figsize=(2.6 + 0.8 * len(labels), 0.86 * len(rows) + 0.5),
        layout="constrained",
        squeeze=False,
    )
    for cells, (title, images) in zip(grid, rows, strict=True):
        for axes, image in zip(cells, images, strict=True):
            picture = image.reshape(scene.names["shape"])
            if picture.ndim == 3:
                picture = np.clip((picture.transpose(1, 2, 0) + 1) / 2, 0, 1)
            axes.imshow(picture, cmap="gray", vmin=-1, vmax=1)
            axes.set_xticks([])
            axes.set_yticks([])
        cells[0].set_ylabel(title, rotation=0, ha="right", va="center")
    for axes, label in zip(grid[0], labels, strict=True):
        axes.set_title(str(int(label)))
    return figure


def training_curves(scene: Scene) -> Figure:
    """Training losses by epoch, and the test MSE of each group on the way."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    train = [r for r in scene.rows if r["split"] == "train" and r["metric"] == "mae"]
    groups = scene.names["groups"]
    for head, region, group in dict.fromkeys((r["head"], r["region"], r["group"]) for r in train):
        points = [r for r in train if (r["head"], r["region"], r["group"]) == (head, region, group)]
        style = LINE_STYLES[groups.index(group) % 4] if group in groups else "-"
        name = scene.title(head, region) + (f", {group}" if group in groups else "")
        _curve(left, points, scene.colour(region), style, name)
    left.set_ylabel("training loss: MAE (pixel, pixels in [−1, 1])")
    test = [r for r in scene.rows if r["split"] == "test" and r["metric"] == "mse" and r["group"] in groups]
    for head, region, group in dict.fromkeys((r["head"], r["region"], r["group"]) for r in test):
        points = [r for r in test if (r["head"], r["region"], r["group"]) == (head, region, group)]
        if head in ("decoder", "certificate"):
            style = LINE_STYLES[groups.index(group) % 4]
            _curve(right, points, scene.colour(region), style, f"{scene.title(head, region)}, {group}")
    right.set_ylabel("test MSE (squared pixel, pixels in [−1, 1])")
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        axes.set_ylim(bottom=0)
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
    figure.suptitle("Training")
    return figure


def _curve(axes: Axes, points: list[dict[str, Any]], colour: str, style: str, name: str) -> None:
    steps, values = [p["step"] for p in points], [p["value"] for p in points]
    axes.plot(steps, values, color=colour, linestyle=style, label=name, marker="." if len(points) < 12 else None)


def encoding_heat_map(scene: Scene, site: str) -> Figure:
    """A site's activations, one row per test image, sorted by label; regions marked above."""
    values, labels = scene.arrays[f"encoding/{site}"], scene.arrays["encoding_labels"]
    values = values.reshape(len(values), -1, values.shape[-1]).mean(1)
    limit = float(np.quantile(np.abs(values), 0.99)) or 1.0
    figure, axes = plt.subplots(figsize=(8, 6.5), layout="constrained")
    norm = TwoSlopeNorm(0, -limit, limit)
    shown = axes.imshow(values, aspect="auto", cmap="RdBu_r", norm=norm, interpolation="nearest")
    figure.colorbar(shown, label="activation (colours end at the 99 % quantile)", extend="both")
    starts = [int(np.flatnonzero(labels == label)[0]) for label in np.unique(labels)]
    ends = [*starts[1:], len(labels)]
    middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
    axes.set_yticks(middles, [str(int(label)) for label in np.unique(labels)])
    for start in starts[1:]:
        axes.axhline(start - 0.5, color="black", linewidth=0.4)
    axes.set_ylabel(f"test images sorted by {scene.noun}")
    axes.set_xlabel(f"unit of {site}")
    regions = scene.names["regions"]
    crowded = max(map(len, regions)) * len(regions) > 70  # names beside each other would overlap
    names: dict[str, Any] = {"ha": "left", "rotation": 40, "fontsize": 8} if crowded else {"ha": "center"}
    for region, place in regions.items():
        if site in place["sites"]:
            units = place["units"]
            axes.plot(
                [min(units) - 0.4, max(units) + 0.4],
                [-0.012 * len(labels)] * 2,
                color=scene.colour(region),
                linewidth=5,
                clip_on=False,
                solid_capstyle="butt",
            )
            axes.text(
                float(np.mean(units)),
                -0.025 * len(labels),
                region,
                color=scene.colour(region),
                va="bottom",
                **names,
            )
    axes.set_ylim(len(labels) - 0.5, -0.5)
    figure.suptitle(f"What each unit of {site} encodes")
    return figure


def mask_matrix(scene: Scene) -> Figure:
    """The gradient weight of every group in every unit of every site."""
    sites = [key.removeprefix("mask/") for key in scene.arrays if key.startswith("mask/")]
    groups = scene.names["groups"]
    figure, grid = plt.subplots(
        len(sites),
        1,
        figsize=(9, len(sites) * (1.4 + 0.35 * len(groups))),
        squeeze=False,
        layout="constrained",
    )
    for axes, site in zip(grid[:, 0], sites, strict=True):
        mask = scene.arrays[f"mask/{site}"]
        top = max(1.0, float(np.abs(mask).max()))
        shown = axes.imshow(mask, aspect="auto", cmap="PRGn", vmin=-top, vmax=top, interpolation="nearest")
        axes.set_yticks(range(len(groups)), groups)
        axes.set_xlabel(f"unit of {site}")
        axes.set_xticks(np.arange(mask.shape[1] + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(len(groups) + 1) - 0.5, minor=True)
        if mask.shape[1] <= 128:
            axes.grid(which="minor", color="white", linewidth=0.8)
        axes.tick_params(which="minor", length=0)
        figure.colorbar(shown, ax=axes, label="gradient weight")
    figure.suptitle("Which group's gradients reach which units")
    return figure


def ledger_curves(scene: Scene) -> Figure:
    """What reached each region from each group through the mask, and how far its parameters moved, by window."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    groups = list(dict.fromkeys(r["group"] for r in scene.ledger if r["group"] != "all"))
    came = [r for r in scene.ledger if r["routed"] is not None]
    for group, region in dict.fromkeys((r["group"], r["region"]) for r in came):
        rows = [r for r in came if (r["group"], r["region"]) == (group, region)]
        style = LINE_STYLES[groups.index(group) % 4]
        _windows(left, rows, "routed", scene.colour(region), style, f"{group} in {region}")
    moved = [r for r in scene.ledger if r["moved"] is not None]
    for region in dict.fromkeys(r["region"] for r in moved):
        _windows(right, [r for r in moved if r["region"] == region], "moved", scene.colour(region), "-", region)
    left.set_ylabel("gradient through the mask (L2 norm)")
    right.set_ylabel("change of the parameters in a window (L2 norm)")
    left.set_ylim(bottom=-0.03 * left.get_ylim()[1])  # a line at exactly 0 stays visible
    if all(r["moved"] > 0 for r in moved):
        right.set_yscale("log")
        right.yaxis.set_major_formatter(LogFormatter())  # the default one writes mathematics
        right.yaxis.set_minor_formatter(LogFormatter())
    for axes in (left, right):
        axes.set_xlabel("optimizer step at the window's end")
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
    if not came:
        left.text(0.5, 0.5, "no region: nothing is routed", ha="center", transform=left.transAxes)
    figure.suptitle("Ledger: whose gradients arrived where, and what moved")
    return figure


def _windows(axes: Axes, rows: list[dict[str, Any]], column: str, colour: str, style: str, name: str) -> None:
    marker = "o" if len(rows) < 12 else None
    steps, values = [r["to_step"] for r in rows], [r[column] for r in rows]
    axes.plot(steps, values, color=colour, linestyle=style, marker=marker, markersize=4, label=name, clip_on=False)


def draw(run: Path) -> None:
    """Write every plot of a run into `plots/`, as PNG and as SVG."""
    scene = Scene(run)
    if "vocabulary" in scene.names:
        figures = language_figures(scene)
    elif "classes" in scene.names:
        figures = classification_figures(scene)
    else:
        figures = {
            "loss_per_label": loss_per_label(scene),
            "reconstructions": reconstruction_grid(scene),
            "training_curves": training_curves(scene),
        }
    if scene.ledger:
        figures["ledger"] = ledger_curves(scene)
    if any(key.startswith("mask/") for key in scene.arrays):
        figures["mask"] = mask_matrix(scene)
    for key in scene.arrays:
        if key.startswith("encoding/"):
            site = key.removeprefix("encoding/")
            figures[f"encoding_{site}"] = encoding_heat_map(scene, site)
    folder = run / "plots"
    folder.mkdir(exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(folder / f"{name}.png", dpi=130)
        figure.set_layout_engine("none")  # it is laid out by now
        figure.savefig(folder / f"{name}.svg")
        plt.close(figure)
