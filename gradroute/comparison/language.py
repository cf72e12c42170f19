"""What a comparison of language models shows besides its table: losses by stage and method, relearning, completions.

The figures follow GR figures 5, 10, 11 and 12. A method is a run's `name` and, if runs of that name differ in settings
other than the seed and the labelled fraction, those settings.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gradroute.comparison.plots import png, short
from gradroute.comparison.runs import Read, by_experiment, differ, natural
from gradroute.errors import plain_text
from gradroute.records.metrics import ATTACKED, RELEARNED
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.reporting.intervals import interval
from gradroute.reporting.language_tables import STAGES, final_stage, read_completions, side_by_side

FRACTION = "routing.labelled_fraction"
NATS = "cross-entropy (nats per token)"
WORDS = {
    "model": "trained",
    "model_ablated": "ablated",
    "model_unlearned": "unlearned",
    "model_finetuned": "fine-tuned",
    ATTACKED: "attacked",
}
MARKERS = "os^vD"
GROUPS, PANELS = 4, 8  # more would be unreadable
Stage = tuple[str, str]  # head and region


@dataclass(frozen=True)
class Setting:
    """Runs that differ in seed only, in the order of their seeds; of each seed the last run."""

    method: str
    fraction: float
    reads: tuple[Read, ...]


def settings_of(reads: Iterable[Read], keys: Sequence[str]) -> list[Setting]:
    """Return the settings of language models; `keys` are the keys in which runs of one experiment differ."""
    found: dict[tuple[str, float], dict[int, Read]] = {}
    own = [read for read in reads if any(row["metric"] == "cross_entropy" for row in read.rows)]
    experiments = by_experiment(own).items()
    differs = {name: [key for key in keys if key != FRACTION and differ(same, key)] for name, same in experiments}
    for read in own:
        name = read.settings["name"]
        method = plain_text(", ".join([name, *(f"{short(key)}={read.settings.get(key)}" for key in differs[name])]))
        found.setdefault((method, _fraction(read)), {})[read.settings["seed"]] = read
    return [Setting(*key, tuple(by_seed[seed] for seed in sorted(by_seed))) for key, by_seed in found.items()]


def _fraction(read: Read) -> float:
    value = read.settings.get(FRACTION, 1.0)
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else 1.0


def _uses_labels(read: Read) -> bool:
    """Return whether anything that is routed, weighted or unlearned depends on which documents are labelled."""
    given = ("routing.routes.", "losses.groups.", "unlearn.")
    return any(key.startswith(given) for key in read.settings)


def _stage_key(stage: Stage) -> tuple[Any, ...]:
    head, region = stage
    return STAGES.index(head) if head in STAGES else len(STAGES), natural(head), region


def _title(stage: Stage, stages: Sequence[Stage]) -> str:
    head, region = stage
    if head.startswith(RELEARNED):
        return f"relearned from {head.removeprefix(RELEARNED)}"
    several = sum(other == head for other, _ in stages) > 1
    return WORDS.get(head, head) + (f", {region}" if several else "")


def _values(setting: Setting, stage: Stage, group: str) -> list[float]:
    """Return the test loss of each run that has this stage."""
    key = (*stage, group, "cross_entropy")
    rows = [row for read in setting.reads for row in read.rows]
    return [row["value"] for row in rows if (row["head"], row["region"], row["group"], row["metric"]) == key]


def _point(axes: Axes, at: Sequence[float], values: Sequence[Sequence[float]], number: int, label: str) -> None:
    """Draw means with their intervals, in the colour of a method, joined by a line."""
    halves = [0.0 if math.isnan(half := interval(own)) else half for own in values]
    axes.errorbar(at, [mean(own) for own in values], yerr=halves, label=label, **_look(number), capsize=3)


def _look(number: int) -> dict[str, Any]:
    return {"color": f"C{number % 10}", "marker": MARKERS[number // 10 % len(MARKERS)]}


def _legend(figure: Figure, axes: Iterable[Axes]) -> None:
    """Draw one legend for all panels, with each method once."""
    found: dict[str, Any] = {}
    for panel in axes:
        found = dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True)) | found
    names = sorted(found, key=natural)
    figure.legend([found[name] for name in names], names, loc="outside lower center", ncols=3, frameon=False)


def _grid(rows: int, columns: int, width: float = 3.2) -> tuple[Figure, Any]:
    size = (width * columns + 0.6, 2.9 * rows + 0.9)
    figure, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", sharey="row")
    figure.suptitle("mean over seeds and its 95 % t-interval", fontsize=9)
    return figure, grid


def by_stage(settings: Sequence[Setting], methods: list[str], groups: list[str], stages: list[Stage]) -> Figure:
    """Draw each group's test loss at each stage, one colour per method (GR figure 10)."""
    figure, grid = _grid(len(groups), 1, max(5.0, 1.2 * len(stages)))
    for axes, group in zip(grid[:, 0], groups, strict=True):
        for i, setting in enumerate(settings):
            number = methods.index(setting.method)
            shift = (i - (len(settings) - 1) / 2) * 0.7 / len(settings)
            for at, stage in enumerate(stages):
                if values := _values(setting, stage, group):
                    _point(axes, [at + shift], [values], number, setting.method)
        axes.set_xticks(range(len(stages)), [_title(stage, stages) for stage in stages], rotation=30, ha="right")
        axes.set_title(f"loss on {plain_text(group)}")
        axes.set_ylabel(NATS)
        axes.grid(axis="y", alpha=0.3)
    _legend(figure, grid.flat)
    return figure


def by_fraction(settings: Sequence[Setting], methods: list[str], groups: list[str], stages: list[Stage]) -> Figure:
    """Draw each group's loss at each stage against the labelled fraction, a line per method (GR figures 5 and 11)."""
    figure, grid = _grid(len(groups), len(stages))
    places = sorted({setting.fraction for setting in settings})
    for row, group in zip(grid, groups, strict=True):
        for axes, stage in zip(row, stages, strict=True):
            for number, method in enumerate(methods):
                own = sorted((s for s in settings if s.method == method), key=lambda s: s.fraction)
                there = [(s.fraction, values) for s in own if (values := _values(s, stage, group))]
                if len(there) == 1 and not any(_uses_labels(read) for s in own for read in s.reads):
                    there = [(place, there[0][1]) for place in places]  # it would be the same at every fraction
                if there:
                    _point(axes, [at for at, _ in there], [values for _, values in there], number, method)
            if places[0] > 0 and places[-1] / places[0] >= 8:
                axes.set_xscale("log")
                axes.minorticks_off()
            axes.set_xticks(places, [f"{place:g}" for place in places])
            axes.set_title(f"{_title(stage, stages)}\n{plain_text(group)}", fontsize=9)
            axes.set_xlabel("labelled fraction")
        row[0].set_ylabel(NATS)
    _legend(figure, grid.flat)
    return figure


def _curves(setting: Setting) -> dict[tuple[str, str], dict[int, list[float]]]:
    """Return each run's validation loss during relearning, mean over its samples, by head and group, then step."""
    found: dict[tuple[str, str], dict[int, list[float]]] = {}
    for read in setting.reads:
        samples: dict[tuple[str, str, int], list[float]] = {}
        for row in read_metrics(read.path, read_manifest(read.path)):
            if (row["split"], row["metric"]) == ("validation", "cross_entropy") and row["head"].startswith(RELEARNED):
                samples.setdefault((row["head"], row["group"], row["step"]), []).append(row["value"])
        for (head, group, step), values in samples.items():
            found.setdefault((head, group), {}).setdefault(step, []).append(mean(values))
    return found


def relearning(settings: Sequence[Setting], methods: list[str], groups: list[str]) -> Figure | None:
    """Draw each group's loss over the updates of relearning, a line with interval per method (GR figure 12)."""
    curves = [(setting.method, _curves(setting)) for setting in settings]
    heads = sorted({head for _, own in curves for head, _ in own}, key=natural)[:PANELS]
    if not heads:
        return None
    figure, grid = _grid(len(groups), len(heads))
    for row, group in zip(grid, groups, strict=True):
        for axes, head in zip(row, heads, strict=True):
            for method, own in curves:
                by_step = sorted(own.get((head, group), {}).items())
                steps, means = [step for step, _ in by_step], np.array([mean(values) for _, values in by_step])
                halves = np.nan_to_num([interval(values) for _, values in by_step])
                look = _look(methods.index(method))
                axes.plot(steps, means, label=method, **look, markersize=3)
                axes.fill_between(steps, means - halves, means + halves, color=look["color"], alpha=0.15, linewidth=0)
            axes.set_title(
                f"relearning from {plain_text(head.removeprefix(RELEARNED))}\n{plain_text(group)}", fontsize=9
            )
            axes.set_xlabel("update")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        row[0].set_ylabel(NATS)
    _legend(figure, grid.flat)
    return figure


def draw(settings: Sequence[Setting]) -> dict[str, bytes]:
    """Return PNG images by name: stages and relearning for each labelled fraction, and losses against the fraction."""
    found: dict[str, bytes] = {}
    losses = [row for s in settings for read in s.reads for row in read.rows if row["metric"] == "cross_entropy"]
    groups = list(dict.fromkeys(row["group"] for row in losses))[:GROUPS]
    stages = sorted({(row["head"], row["region"]) for row in losses}, key=_stage_key)[:PANELS]
    methods = sorted({setting.method for setting in settings}, key=natural)
    fractions = sorted({setting.fraction for setting in settings})
    for fraction in fractions:
        own = sorted((s for s in settings if s.fraction == fraction), key=lambda s: natural(s.method))
        end = f", {fraction:g} labelled" if len(fractions) > 1 else ""
        found[f"stages{end}"] = png(by_stage(own, methods, groups, stages))
        if (figure := relearning(own, methods, groups)) is not None:
            found[f"relearning{end}"] = png(figure)
    if len(fractions) > 1:
        found["labelled fraction"] = png(by_fraction(settings, methods, groups, stages))
    return found


def completions(settings: Sequence[Setting]) -> tuple[list[str], list[list[Any]]]:
    """Return column names and rows: the last stage's completions of each setting's first seed, side by side."""
    several = len({setting.fraction for setting in settings}) > 1
    columns = {}
    for setting in settings:
        first = setting.reads[0]
        if rows := read_completions(first.path, read_manifest(first.path)):
            title = setting.method + (f", {setting.fraction:g} labelled" if several else "")
            columns[title] = final_stage(rows)
    return side_by_side(columns)
