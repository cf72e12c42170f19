"""The plots of a classifier's run, drawn from its folder alone (after GR figure 9)."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gradroute.reporting.run_data import LINE_STYLES, RunData

MANY = 20  # labels; a run with more has points, without names
HEADS = ("decoder", "certificate")
ACCURACY = "test accuracy"


def _values(run: RunData) -> dict[tuple[str, str, str], float]:
    return {(r["head"], r["region"], r["group"]): r["value"] for r in run.final if r["metric"] == "accuracy"}


def accuracy_per_label(run: RunData) -> Figure:
    """Test accuracy of decoder and certificates for each label, and of each group as a line (GR figure 9)."""
    heads, values = [head for head in run.heads if head[0] in HEADS], _values(run)
    groups = {group: labels for group, labels in run.names["labels"].items() if labels}
    labels = [label for own in groups.values() for label in own]
    figure, axes = plt.subplots(figsize=(10, 4.2), layout="constrained")
    width, many = 0.8 / len(heads), len(labels) > MANY
    for i, (head, region) in enumerate(heads):
        heights = [values[head, region, f"{run.noun}_{label}"] for label in labels]
        at, colour = np.arange(len(labels)) + (i - (len(heads) - 1) / 2) * width, run.colour(region)
        if many:
            axes.plot(at, heights, ".", color=colour, alpha=0.5, label=run.title(head, region))
        else:
            axes.bar(at, heights, width, color=colour, label=run.title(head, region))
        _group_lines(axes, groups, [values[head, region, group] for group in groups], colour)
    first = np.cumsum([0, *map(len, groups.values())])[:-1]
    names = {int(at): f"{labels[at]}\n{group}" for at, group in zip(first, groups, strict=True)}
    shown = list(names) if many else range(len(labels))
    axes.set_xticks(shown, [names.get(at, str(labels[at])) for at in shown], ha="left" if many else "center")
    axes.set_ylim(0, 1)
    axes.set_xlabel(f"{run.noun} (below: the group that starts there)")
    axes.set_ylabel(ACCURACY)
    axes.set_title(f"Accuracy by {run.noun}; dashed lines: whole groups")
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _group_lines(axes: Axes, groups: dict[str, list[int]], heights: list[float], colour: str) -> None:
    start = 0
    for labels, height in zip(groups.values(), heights, strict=True):
        axes.plot([start - 0.45, start + len(labels) - 0.55], [height] * 2, color=colour, linestyle="--", linewidth=1)
        start += len(labels)


def confusion(run: RunData) -> Figure:
    """Confusion matrix of every head: the share of a label's test images that it takes for each label."""
    keys = [key for key in run.arrays if key.startswith("confusion/")]
    groups = list(run.names["labels"].values())
    order = [label for own in groups for label in own]
    lines = -(-len(keys) // 4)
    columns = -(-len(keys) // lines)
    size = (3.3 * columns + 1, 3.3 * lines + 0.4)
    figure, grid = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for axes in grid.flat[len(keys) :]:
        axes.set_axis_off()
    for axes, key in zip(grid.flat, keys, strict=False):
        counts = run.arrays[key][np.ix_(order, order)].astype(float)
        shares = counts / np.maximum(run.arrays[key][order].sum(1, keepdims=True), 1)
        shown = axes.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
        for edge in np.cumsum([len(own) for own in groups])[:-1]:
            axes.axhline(edge - 0.5, color="white", linewidth=0.8)
            axes.axvline(edge - 0.5, color="white", linewidth=0.8)
        if len(order) <= MANY:
            axes.set_xticks(range(len(order)), [str(label) for label in order], fontsize=7)
            axes.set_yticks(range(len(order)), [str(label) for label in order], fontsize=7)
        axes.set_title(run.title(*key.split("/")[1:]), fontsize=9)
        axes.set_xlabel(f"predicted {run.noun}", fontsize=8)
        axes.set_ylabel(f"true {run.noun}", fontsize=8)
    figure.colorbar(shown, ax=grid, label=f"share of the true {run.noun}'s images")
    return figure


def training_curves(run: RunData) -> Figure:
    """Training losses by epoch, and the test accuracy of each group during training."""
    figure, both = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    groups = run.names["groups"]
    error, label = run.trained_on("cross_entropy", "cross-entropy (nats per image)")
    for axes, split, metric in zip(both, ("train", "test"), (error, "accuracy"), strict=True):
        rows = [r for r in run.rows if r["split"] == split and r["metric"] == metric and r["head"] in HEADS]
        rows = [r for r in rows if split == "train" or r["group"] in groups]
        for head, region, group in dict.fromkeys((r["head"], r["region"], r["group"]) for r in rows):
            own = [r for r in rows if (r["head"], r["region"], r["group"]) == (head, region, group)]
            style = LINE_STYLES[groups.index(group) % 4] if group in groups else "-"
            name = run.title(head, region) + (f", {group}" if group in groups else "")
            steps, values = [r["step"] for r in own], [r["value"] for r in own]
            axes.plot(steps, values, color=run.colour(region), linestyle=style, label=name, marker=".")
        axes.set_xlabel("optimizer step")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
    both[0].set_ylabel(f"training loss: {label}")
    both[1].set_ylabel(ACCURACY)
    both[1].set_ylim(0, 1)
    figure.suptitle("Training")
    return figure
