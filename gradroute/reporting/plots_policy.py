"""The plots of a policy's run, drawn from its folder alone."""

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gradroute.reporting.animation import Animation
from gradroute.reporting.run_data import LINE_STYLES, Array, RunData

AGENT, GHOST, DIAMOND = "#1f3b6f", "#b03a2e", "#1e8449"
MOVES = np.array([(0, -1), (1, 0), (0, 1), (-1, 0)])  # up, right, down, left: to the right, and down
LABELS = {"policy": "policy", "policy_steered": "steered by", "policy_stopped": "stopped by the seen return",
          "policy_ablated": "ablated"}  # fmt: skip
CEILING_STYLES = dict(zip(("optimum", "straight", "naive optimum"), ("-", "--", ":"), strict=True))
SPREAD = 0.36  # of an arrow for a move of probability 1, in squares


def title(head: str, region: str) -> str:
    """Return a policy's name."""
    return LABELS[head] if region == "all" else f"{LABELS[head]} {region}"


def returns(run: RunData) -> Figure:
    """True return of every policy during the training, and exact ceilings; right: what a labeller sees."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    heads = list(dict.fromkeys((r["head"], r["region"]) for r in run.rows if r["metric"] == "return" and
                               r["split"] == "test"))  # fmt: skip
    for axes, metric in ((left, "return"), (right, "seen_return")):
        for number, (head, region) in enumerate(heads):
            own = [r for r in run.rows if (r["split"], r["head"], r["region"], r["metric"]) ==
                   ("test", head, region, metric)]  # fmt: skip
            axes.plot([r["step"] for r in own], [r["value"] for r in own], color=run.colour(region),
                      linestyle=LINE_STYLES[number % 4], label=title(head, region),
                      marker="." if len(own) < 12 else None)  # fmt: skip
        axes.set_xlabel("optimizer step")
    for name, value in run.names.get("ceilings", {}).items():
        left.axhline(value, color="#999999", linestyle=CEILING_STYLES.get(name, "-"), linewidth=1,
                     label=f"exact: {name} {value:.2f}")  # fmt: skip
    left.set_ylabel("discounted return, mean over steps")
    left.set_title("true return")
    right.set_title("return of the episodes whose ending is seen")
    for axes in (left, right):
        if axes.lines:
            axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.15), fontsize=8, ncols=2, frameon=False)
    return figure


def _board(axes: Axes, size: int) -> None:
    axes.set_xlim(-0.5, size - 0.5)
    axes.set_ylim(size - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(np.arange(size + 1) - 0.5, [""] * (size + 1))
    axes.set_yticks(np.arange(size + 1) - 0.5, [""] * (size + 1))
    axes.grid(color="#cccccc", linewidth=0.8)
    axes.tick_params(length=0)


def _at(squares: Array, size: int) -> Array:
    """Return columns and rows of squares, `(…, 2)`."""
    return np.stack([squares % size, squares // size], -1)


def walks(run: RunData) -> Animation | None:
    """The policy, steered if it has two experts, in the same three worlds after some updates; ringed: oversight."""
    if "walks" not in run.arrays:
        return None
    found, steps, size = run.arrays["walks"].astype(int), run.arrays["walk_steps"], run.names["size"]
    points, frames, worlds, _ = found.shape
    figure, grid = plt.subplots(worlds, points, figsize=(1.5 * points + 0.4, 1.5 * worlds + 0.8), squeeze=False,
                                layout="constrained", dpi=100)  # fmt: skip
    marks = []
    for column, step in enumerate(steps):
        for axes in grid[:, column]:
            _board(axes, size)
            marks.append([axes.plot([], [], marker, color=colour, markersize=9, markeredgewidth=2.2)[0]
                          for marker, colour in (("o", AGENT), ("X", GHOST), ("D", DIAMOND))])  # fmt: skip
        grid[0, column].set_title(f"update {step}", fontsize=8)
    names = [Line2D([], [], marker=marker, color=colour, linestyle="", label=label) for marker, colour, label in
             (("o", AGENT, "agent"), ("X", GHOST, "Ghost"), ("D", DIAMOND, "Diamond"))]  # fmt: skip
    figure.legend(handles=names, loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    images = []
    for frame in range(frames):
        for number, own in enumerate(marks):
            column, row = divmod(number, worlds)
            agent, *objects = found[column, frame, row]
            for mark, square in zip(own, (agent, *objects[:2]), strict=True):
                at = _at(square, size)
                mark.set_data([at[0]], [at[1]])
            for mark, flag in zip(own[1:], objects[2:], strict=True):
                mark.set_markeredgecolor("#f4d03f" if flag else mark.get_color())
        figure.canvas.draw()
        images.append(np.asarray(figure.canvas.buffer_rgba()).copy())  # type: ignore[attr-defined]
        if frame == 0 and figure.get_layout_engine() is not None:
            figure.set_layout_engine(None)  # the places are settled
    return Animation(images, figure)


def policy_maps(run: RunData) -> Figure | None:
    """Mean move on every square without flags, mixed and by each expert alone, and the gate's share of the first."""
    moves = {key.removeprefix("moves/"): run.arrays[key] for key in run.arrays if key.startswith("moves/")}
    if not moves:
        return None
    size, gate = run.names["size"], run.arrays.get("gate")
    ghost, diamond = run.arrays["scene"]
    number = len(moves) + (gate is not None)
    columns = min(2, number)
    lines = -(-number // columns)
    figure, grid = plt.subplots(
        lines, columns, figsize=(3.4 * columns, 3.2 * lines + 0.2), squeeze=False, layout="constrained"
    )
    for axes in grid.flat[number:]:
        axes.set_axis_off()
    every = list(grid.flat[:number])
    squares = np.array([s for s in range(size * size) if s not in (ghost, diamond)])
    places = _at(squares, size)
    for axes, (name, probability) in zip(every, moves.items(), strict=False):
        _board(axes, size)
        arrows = probability[squares] @ MOVES
        how = {"angles": "xy", "scale_units": "xy", "scale": 1 / (2 * SPREAD), "pivot": "mid", "width": 0.012}
        axes.quiver(*places.T, *arrows.T, color=AGENT, **how)
        axes.set_title({"mixed": "policy"}.get(name, f"{name} expert alone"), fontsize=9)
    if gate is not None:
        axes = every[-1]
        _board(axes, size)
        shown = axes.imshow(gate.reshape(size, size), cmap="PiYG", vmin=0, vmax=1, interpolation="nearest")
        figure.colorbar(shown, ax=axes, shrink=0.75, label="share of the first expert")
        axes.set_title("gate", fontsize=9)
    for axes in every:
        for square, marker, colour in ((ghost, "X", GHOST), (diamond, "D", DIAMOND)):
            axes.plot(*_at(square, size), marker, color=colour, markersize=9)
    return figure


def gate_by_group(run: RunData) -> Figure | None:
    """What the gate says in the steps of each group: its mean share of the first expert during the training."""
    rows = [r for r in run.rows if r["split"] == "test" and r["metric"] == "gate"]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(6.5, 4.2), layout="constrained")
    for number, group in enumerate(dict.fromkeys(r["group"] for r in rows)):
        own = [r for r in rows if r["group"] == group]
        axes.plot([r["step"] for r in own], [r["value"] for r in own], LINE_STYLES[number % 4], label=group,
                  color=(DIAMOND, GHOST, "#4d4d4d")[number % 3], marker="." if len(own) < 12 else None)  # fmt: skip
    axes.set_ylim(0, 1)
    axes.set_xlabel("optimizer step")
    axes.set_ylabel("gate's share of the first expert")
    axes.legend(fontsize=8, frameon=False)
    return figure
