"""The page of a search: its front, the importance of each key, the finals, and the best configurations."""

import csv
import io
import math
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # draws without a display
import optuna
from matplotlib import pyplot as plt
from matplotlib.ticker import NullFormatter
from optuna.trial import FrozenTrial, TrialState

from gradroute.comparison.plots import png, short
from gradroute.records.atomic import write_atomically
from gradroute.reporting.page import Page, Table
from gradroute.search.finals import HANDMADE, Final, front, label, mean, verdict
from gradroute.search.methods import spending
from gradroute.search.study import Search

COLOURS = {"search": "tab:blue", "random": "tab:gray", HANDMADE: "black", "guess": "tab:green", "placebo": "tab:orange"}
SIGN = {"lower": "lower is better", "higher": "higher is better"}


def _done(search: Search) -> list[tuple[str, FrozenTrial]]:
    """Return every finished trial with its kind."""
    trials = [(name, trial) for name in search.studies for trial in search.trials(name)]
    return [(t.user_attrs.get("kind", name), t) for name, t in trials if t.state == TrialState.COMPLETE]


def _shown_front(search: Search) -> bytes:
    """Plot all finished trials by the first two objectives, or by number and the only one, with the fronts."""
    objectives = list(search.search.objectives.items())
    figure, axes = plt.subplots(figsize=(7, 4.6), layout="constrained")

    def place(trial: FrozenTrial) -> tuple[float, float]:
        return (trial.values[0], trial.values[1]) if len(objectives) > 1 else (trial.number, trial.values[0])

    for kind, colour in COLOURS.items():
        points = [place(trial) for found, trial in _done(search) if found == kind]
        if points:
            x, y = zip(*points, strict=True)
            size, order = (24, 2) if kind in search.studies else (120, 3)
            axes.scatter(x, y, s=size, color=colour, label=kind, marker="o" if size < 99 else "*", zorder=order)
    for name in search.studies:
        found = sorted(front(search, name), key=place)
        axes.plot([place(t)[0] for t in found], [place(t)[1] for t in found], color=COLOURS[name], linewidth=1)
        look: dict[str, Any] = {"fontsize": 8, "color": COLOURS[name], "xytext": (4, 4), "textcoords": "offset points"}
        for trial in found:
            axes.annotate(str(trial.number), place(trial), **look)
    names = [f"{name} ({SIGN[objective.goal]})" for name, objective in objectives]
    axes.set_xlabel(names[0] if len(objectives) > 1 else "trial")
    axes.set_ylabel(names[min(1, len(objectives) - 1)])
    axes.legend()
    return png(figure)


def importance(search: Search) -> dict[str, dict[str, float]]:
    """Return the importance of each parameter over the finished trials by objective (PED-ANOVA), 1 in sum.

    An objective in which all trials are equal is left out, as is one with too few trials.
    """
    alike = optuna.create_study(directions=search.studies["search"].directions)
    trials = [t for name in search.studies for t in search.trials(name) if t.state == TrialState.COMPLETE and t.params]
    alike.add_trials(trials)
    found: dict[str, dict[str, float]] = {}
    for number, name in enumerate(search.search.objectives):
        if len({trial.values[number] for trial in trials}) < 2:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                evaluator = optuna.importance.PedAnovaImportanceEvaluator()
                found[name] = optuna.importance.get_param_importances(
                    alike, evaluator=evaluator, target=lambda trial: trial.values[number]  # noqa: B023 # called at once
                )  # fmt: skip
        except (ValueError, RuntimeError):  # too few trials, or all equal
            continue
    return found


def _slices(search: Search) -> bytes | None:
    """Plot every objective against every parameter; return None without trials."""
    trials = [(kind, trial) for kind, trial in _done(search) if trial.params]
    keys = list(dict.fromkeys(key for _, trial in trials for key in trial.params))
    if not trials:
        return None
    objectives = list(search.search.objectives)
    size = (2.8 * len(keys) + 0.4, 2.5 * len(objectives) + 0.3)
    figure, grid = plt.subplots(len(objectives), len(keys), figsize=size, squeeze=False, layout="constrained")
    for row, name in enumerate(objectives):
        for axes, key in zip(grid[row], keys, strict=True):
            for kind in ("random", "search"):
                own = [t for found, t in trials if found == kind and key in t.params]
                values = [t.params[key] if isinstance(t.params[key], str) else float(t.params[key]) for t in own]
                axes.scatter(values, [t.values[row] for t in own], s=14, color=COLOURS[kind])
            if any(getattr(trial.distributions.get(key), "log", False) for _, trial in trials):
                axes.set_xscale("log")
                axes.xaxis.set_major_formatter("{x:g}")  # the default one uses math text
                axes.xaxis.set_minor_formatter(NullFormatter())
            axes.tick_params(axis="x", rotation=30, labelsize=7)
            axes.set_xlabel(short(key), fontsize=8)
        grid[row][0].set_ylabel(name, fontsize=8)
    return png(figure)


def _trial_rows(search: Search) -> list[list[object]]:
    rows: list[list[object]] = []
    for name in search.studies:
        for trial in search.trials(name):
            a = trial.user_attrs
            values = trial.values or [math.nan] * len(search.search.objectives)
            state = "failed" if trial.state == TrialState.FAIL else trial.state.name.lower()
            said = " ".join(a.get("overrides", [])) or "as the experiment has it"
            seconds = f"{a['seconds']:.1f}" if "seconds" in a else ""
            rows.append([label(a.get("kind", name), trial), state, *values, seconds, said, a.get("error", "")])
    return rows


def write(search: Search, finals: Sequence[Final], command: str) -> None:
    """Write `search.html`, `trials.csv` and `finals.csv` into the search's folder; `command` resumes it."""
    objectives = search.search.objectives
    columns = ["trial", "state", *objectives, "seconds", "overrides", "error"]
    rows = _trial_rows(search)
    _write_csv(search.folder / "trials.csv", [columns, *rows])
    made = [[f.name, seed, *values, " ".join(f.overrides)] for f in finals
            for seed, values in zip(f.seeds, f.values, strict=True)]  # fmt: skip
    costs = [[name, updates] for name, updates in spending(search).items()]
    _write_csv(search.folder / "methods.csv", [["method", "updates"], *costs])
    _write_csv(search.folder / "finals.csv", [["finalist", "seed", *objectives, "overrides"], *made])
    note = "; ".join(f"{n}: {o.head} {o.region} {o.group} {o.metric}, {search.units[o.metric]}, {SIGN[o.goal]}"
                     for n, o in objectives.items())  # fmt: skip
    tables = [Table("Updates that each method made before the finals", ["method", "updates"], costs)] if costs else []
    if finals:
        cells = [[f.name, len(f.values), *(_cell(f.of(i)) for i in range(len(objectives))), " ".join(f.overrides)]
                 for f in finals]  # fmt: skip
        tables.append(Table("Finals: fresh seeds, mean and half-width of its 95 % t-interval",
                            ["finalist", "n", *objectives, "overrides"], cells, note))  # fmt: skip
    figures = [("Trials by objective; lines: fronts of the search and of random search", _shown_front(search))]
    if (sliced := _slices(search)) is not None:
        figures.append(("Objectives against each searched key; grey: random search", sliced))
    best = [[label("search", trial), "gradroute-run " + shlex.join(search.command(trial.user_attrs["overrides"], True))]
            for trial in front(search, "search")]  # fmt: skip
    if best:
        tables.append(Table("Commands of the best configurations", ["trial", "command"], best, long=True))
    matters = importance(search)
    if matters:
        keys = list(dict.fromkeys(key for shares in matters.values() for key in shares))
        cells = [[key, *(matters[name].get(key, math.nan) if name in matters else math.nan for name in objectives)]
                 for key in keys]  # fmt: skip
        tables.append(Table("Importance of each key over all trials (PED-ANOVA)", ["key", *objectives], cells))
    counts = {state: sum(row[1] == state for row in rows) for state in ("complete", "pruned", "failed")}
    title = f"Search {search.search.name}: {', '.join(f'{n} {state}' for state, n in counts.items())}"
    texts = [("How to resume this search", command)]
    page = Page(title, verdict(search, finals), tables, figures, texts, listings=[Table("Trials", columns, rows, note)])
    write_atomically(search.folder / "search.html", page.html())


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    write_atomically(path, buffer.getvalue())


def _cell(values: Sequence[float]) -> str:
    if not values:
        return "no finished run"
    value, half = mean(values)
    return f"{value:.4f}" + ("" if math.isnan(half) else f" ± {half:.4f}")
