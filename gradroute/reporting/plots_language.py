"""The plots of a language model's run, drawn from its folder alone (after GR figures 5 and 10)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gradroute.records.metrics import PROFILE
from gradroute.records.run_reader import read_manifest
from gradroute.reporting.run_data import LINE_STYLES, REGION_COLOURS, RunData
from gradroute.reporting.steering_tables import LEVEL, read_steering

NATS = "cross-entropy (nats per token)"
LABELLED = 6  # groups whose bars have their numbers written above them; of more, they would overlap


def _colour(run: RunData, group: str) -> str:
    groups = run.names["groups"]
    return REGION_COLOURS[groups.index(group) % 10] if group in groups else "#4d4d4d"


def stages(run: RunData) -> Figure:
    """Each group's test loss after each step; for relearning, the lowest."""
    order = ["model", "model_ablated", "model_unlearned", "model_finetuned"]
    measured = [head for head in run.heads if head[0] != PROFILE]  # a table shows these
    heads = sorted(measured, key=lambda head: (order.index(head[0]) if head[0] in order else len(order), head))
    values = {(r["head"], r["region"], r["group"]): r["value"] for r in run.final if r["metric"] == "cross_entropy"}
    groups = run.names["groups"]
    figure, axes = plt.subplots(figsize=(max(6.0, 2.5 + 1.4 * len(heads)), 4.4), layout="constrained")
    width = 0.8 / len(groups)
    for i, group in enumerate(groups):
        heights = [values.get((*head, group), np.nan) for head in heads]
        at = np.arange(len(heads)) + (i - (len(groups) - 1) / 2) * width
        bars = axes.bar(at, heights, width, color=_colour(run, group), label=group)
        if len(groups) <= LABELLED:
            axes.bar_label(bars, fmt="%.3f", fontsize=7, padding=2)
    axes.set_xticks(range(len(heads)), [run.title(*head) for head in heads], rotation=20, ha="right")
    finite = [value for value in values.values() if np.isfinite(value)]
    axes.set_ylim(bottom=0.9 * min(finite, default=0.0))
    axes.set_ylabel(NATS)
    axes.set_title("Test loss; for relearning, the lowest\n(the axis does not start at 0)", fontsize=10)
    figure.legend(loc="outside right upper", frameon=False)
    return figure


def _rows(run: RunData, split: str, metric: str = "cross_entropy") -> list[dict[str, Any]]:
    return [r for r in run.rows if r["split"] == split and r["metric"] == metric]


def relearning(run: RunData) -> Figure | None:
    """Each group's validation loss during fine-tuning and relearning, mean over the samples."""
    rows = [r for r in _rows(run, "validation") if r["region"].startswith("sample_")]
    if not rows:
        return None
    heads = list(dict.fromkeys(r["head"] for r in rows))
    figure, grid = plt.subplots(
        1, len(heads), figsize=(3.4 * len(heads) + 1, 3.6), layout="constrained", squeeze=False, sharey=True
    )
    for axes, head in zip(grid[0], heads, strict=True):
        for group in run.names["groups"]:
            own = [r for r in rows if (r["head"], r["group"]) == (head, group)]
            steps = sorted({r["step"] for r in own})
            means = [float(np.mean([r["value"] for r in own if r["step"] == step])) for step in steps]
            axes.plot(steps, means, color=_colour(run, group), label=group)
        axes.set_title(run.title(head, "all"))
        axes.set_xlabel("update")
    grid[0][0].set_ylabel(NATS)
    grid[0][-1].legend(frameon=False)
    return figure


def training_curves(run: RunData) -> Figure:
    """Each group's training loss, and its loss on the test documents during training."""
    error, label = run.trained_on("cross_entropy", NATS)
    panels = 1 if error == "cross_entropy" else 2  # another error has an axis of its own
    figure, grid = plt.subplots(1, panels, figsize=(7 * panels, 4.2), layout="constrained", squeeze=False)
    shown = (("train", error, label, grid[0][0]), ("test", "cross_entropy", NATS, grid[0][-1]))
    for style, (split, metric, name, axes) in zip(LINE_STYLES, shown, strict=False):
        rows = [r for r in _rows(run, split, metric) if r["head"] == "model"]
        for group in dict.fromkeys(r["group"] for r in rows):
            own = [r for r in rows if r["group"] == group]
            x, y = [r["step"] for r in own], [r["value"] for r in own]
            axes.plot(x, y, color=_colour(run, group), linestyle=style, marker=".", label=f"{group}, {split}")
        axes.set_xlabel("optimizer step")
        axes.set_ylabel(name)
        axes.legend(frameon=False)
    figure.suptitle("Training")
    return figure


def steering(run: RunData) -> Figure | None:
    """Frequency of routed words and of related ones in generated texts, against the value added to the dimension."""
    if not any(row["metric"] == "related_frequency" for row in run.final):
        return None
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    added = {r["region"]: r["value"] for r in run.final if (r["head"], r["metric"]) == ("steered", "strength")}
    for kind, style in zip(("related", "routed"), LINE_STYLES, strict=False):
        rows = [r for r in run.final if r["metric"] == f"{kind}_frequency"]
        own = [(added[r["region"]] if r["region"] in added else float(r["region"]), r["value"]) for r in rows]
        label = "related words, held out" if kind == "related" else "routed words"
        axes.plot(*zip(*sorted(own), strict=True), linestyle=style, marker="o", color="C0", label=label)
    axes.set_xlabel("value added to the dimension, towards the routed words")
    axes.set_ylabel("share of a text's tokens")
    axes.set_ylim(bottom=0)
    axes.axvline(0, color="#888888", linewidth=0.8)
    axes.legend(frameon=False)
    axes.set_title("Frequency of words in texts, by the added value")
    return figure


def steering_likelihood(run: RunData) -> Figure | None:
    """Log-likelihood ratio of each kind of word, against the distance from the unsteered model or the added value."""
    found = read_steering(run.folder, read_manifest(run.folder)) or {}
    dimensions = [each for each in found.get("dimensions", []) if each["measured"]]
    if not dimensions:
        return None
    leveled = any(label.startswith(LEVEL) for label in dimensions[0]["measured"])
    figure, axes = plt.subplots(figsize=(7.5, 5), layout="constrained")

    def points(dimension: Mapping[str, Any], kind: str) -> list[tuple[float, float, float]]:
        measured = [m for label, m in dimension["measured"].items() if label.startswith(LEVEL) == leveled]
        own = [(m["kl" if leveled else "strength"], *m[kind][:2]) for m in measured if m[kind][0] is not None]
        return sorted((x, y, half or 0.0) for x, y, half in own)

    for number, dimension in enumerate(dimensions[1:]):
        label = "related words, random dimensions" if not number else None
        if drawn := points(dimension, "related"):
            x, y, _ = zip(*drawn, strict=True)
            axes.plot(x, y, color="#999999", linewidth=1, label=label)
    for kind, title, colour, style in (
        ("routed", "routed words", "C3", "--"),
        ("related", "related words, held out", "C0", "-"),
        ("matched", "words of their frequency", "C1", ":"),
    ):
        if drawn := points(dimensions[0], kind):
            x, y, half = zip(*drawn, strict=True)
            axes.errorbar(x, y, half, color=colour, linestyle=style, marker="o", markersize=4, capsize=3, label=title)
    axes.axhline(0, color="#888888", linewidth=0.8)
    if leveled:
        axes.set_xscale("log")
        ticks = [x for x, _, _ in points(dimensions[0], "related")]
        axes.set_xticks(ticks, [f"{x:.2g}" for x in ticks])
        axes.minorticks_off()
    axes.set_xlabel("KL from the unsteered model (nats per token)" if leveled
                    else "value added to the dimension, towards the routed words")  # fmt: skip
    axes.set_ylabel("log-likelihood ratio, steered to unsteered (nats per word)")
    axes.set_title("Likelihood of words in the test documents\n(bars: 95 % interval over documents)", fontsize=10)
    axes.legend(frameon=False)
    return figure
