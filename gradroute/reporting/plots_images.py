"""The plots of an autoencoder's run, drawn from its folder alone (after GR figure 3)."""

from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gradroute.reporting.run_data import LINE_STYLES, RunData


def loss_per_label(run: RunData) -> Figure:
    """Test MSE of decoder and certificates for each label (GR figure 3b)."""
    heads = [h for h in run.heads if h[0] in ("decoder", "certificate")]
    labels = [int(label) for label in run.arrays["image_labels"]]
    values = {(r["head"], r["region"], r["group"]): r["value"] for r in run.final if r["metric"] == "mse"}
    figure, axes = plt.subplots(figsize=(9, 4.2), layout="constrained")
    width = 0.8 / len(heads)
    for i, (head, region) in enumerate(heads):
        heights = [values[head, region, f"{run.noun}_{label}"] for label in labels]
        at = np.arange(len(labels)) + (i - (len(heads) - 1) / 2) * width
        axes.bar(at, heights, width, color=run.colour(region), label=run.title(head, region))
    ticks = [
        f"{label}\n{run.group_of(label)}" if _starts(run, labels, i) else str(label) for i, label in enumerate(labels)
    ]
    axes.set_xticks(range(len(labels)), ticks)
    axes.set_xlabel(f"{run.noun} (below: the group that starts there)")
    axes.set_ylabel("test MSE (squared pixel, pixels in [−1, 1])")
    axes.set_title(f"Reconstruction error by {run.noun}")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _starts(run: RunData, labels: list[int], i: int) -> bool:
    return i == 0 or run.group_of(labels[i]) != run.group_of(labels[i - 1])


GAPS = (0.09, 0.2)  # between two pictures beside and below each other, in widths of one


def reconstructions(run: RunData) -> Figure:
    """One test image per label through every head (GR figure 3c)."""
    rows = [("input", run.arrays["images"])]
    rows += [(run.title(h, r), run.arrays[f"head/{h}/{r}"]) for h, r in run.heads]
    labels = run.arrays["image_labels"]
    size = (2.6 + 0.8 * len(labels), 0.86 * len(rows) + 0.5)
    figure, axes = plt.subplots(figsize=size, layout="constrained")  # one for all: each one more takes 30 ms
    height, width = run.names["shape"][-2:]
    across, down = 1 + GAPS[0], height / width + GAPS[1]  # from one picture to the next
    for row, (_, images) in enumerate(rows):
        for column, image in enumerate(images):
            picture = image.reshape(run.names["shape"])
            if picture.ndim == 3:
                picture = np.clip((picture.transpose(1, 2, 0) + 1) / 2, 0, 1)
            left, top = column * across, row * down
            axes.imshow(picture, cmap="gray", vmin=-1, vmax=1, extent=(left, left + 1, top + height / width, top))
            axes.add_patch(Rectangle((left, top), 1, height / width, fill=False, linewidth=0.8, clip_on=False))
    axes.set_xlim(0, len(labels) * across - GAPS[0])
    axes.set_ylim(len(rows) * down - GAPS[1], 0)
    axes.set_yticks([row * down + height / width / 2 for row in range(len(rows))], [title for title, _ in rows])
    axes.set_xticks([column * across + 0.5 for column in range(len(labels))], [str(int(label)) for label in labels])
    axes.tick_params(length=0, top=True, labeltop=True, bottom=False, labelbottom=False)
    axes.tick_params(axis="x", labelsize="large")
    axes.spines[:].set_visible(False)
    axes.set_anchor("NW")  # the layout keeps room for the titles there
    figure.suppressComposite = True  # joining the pictures takes longer than writing each
    return figure


def training_curves(run: RunData) -> Figure:
    """Training losses by epoch, and the test MSE of each group during training."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    groups = run.names["groups"]
    train = [r for r in run.rows if r["split"] == "train" and r["head"] in ("decoder", "certificate")]
    error = train[0]["metric"] if train else "mae"
    for head, region, group in dict.fromkeys((r["head"], r["region"], r["group"]) for r in train):
        points = [r for r in train if (r["head"], r["region"], r["group"]) == (head, region, group)]
        style = LINE_STYLES[groups.index(group) % 4] if group in groups else "-"
        name = run.title(head, region) + (f", {group}" if group in groups else "")
        _curve(left, points, run.colour(region), style, name)
    unit = next((r["unit"] for r in train), "pixel")
    name = error.upper() if error in ("mae", "mse") else error
    left.set_ylabel(f"training loss: {name} ({unit})".replace("-1", "−1"))
    test = [r for r in run.rows if r["split"] == "test" and r["metric"] == "mse" and r["group"] in groups]
    for head, region, group in dict.fromkeys((r["head"], r["region"], r["group"]) for r in test):
        points = [r for r in test if (r["head"], r["region"], r["group"]) == (head, region, group)]
        if head in ("decoder", "certificate"):
            style = LINE_STYLES[groups.index(group) % 4]
            _curve(right, points, run.colour(region), style, f"{run.title(head, region)}, {group}")
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
