"""Plot how much of people's secrets a model shows, by the number of documents about them."""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gradroute.records.metrics import ATTACKED
from gradroute.reporting.run_data import LINE_STYLES, RunData
from gradroute.reporting.secrets_tables import COPIES, HELDOUT, STAGES, kinds_of, stages_of, values_of

COLOURS = {"model": "#4d4d4d", "model_ablated": "#1f77b4", ATTACKED: "#d62728"}


def secrets(run: RunData) -> Figure | None:
    """Bits of people's secrets that an attacker gets, by the number of documents about them."""
    values = values_of(run.final)
    stages, kinds = stages_of(values), kinds_of(values)
    if not stages or not kinds:
        return None
    figure, grid = plt.subplots(1, len(kinds), figsize=(2.4 * len(kinds) + 0.8, 3.6), layout="constrained",
                                squeeze=False, sharey=True)  # fmt: skip
    for axes, kind in zip(grid[0], kinds, strict=True):
        for head, style in zip(stages, LINE_STYLES, strict=False):
            points = sorted(
                (int(region.removeprefix(COPIES)), value)
                for (own, region, group, metric), value in values.items()
                if (own, group, metric) == (head, kind, "exposure") and region.startswith(COPIES)
            )
            if points:
                x, y = zip(*points, strict=True)
                axes.plot(x, y, marker="o", linestyle=style, color=COLOURS[head], label=STAGES[head])
        for region, metric, label in (("all", "secret_bits", "all bits"), (f"{HELDOUT}_all", "exposure", "in no data")):
            level = values.get(("model", region, "all", metric))
            if level is not None:
                axes.axhline(level, color="#999999", linewidth=0.9, linestyle=":")
                axes.annotate(label, (0.98, level), xycoords=("axes fraction", "data"), ha="right", va="bottom",
                              fontsize=8, color="#666666")  # fmt: skip
        ticks = sorted({int(key[1].removeprefix(COPIES)) for key in values if key[1].startswith(COPIES)})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.minorticks_off()
        axes.set_title(kind)
        axes.set_xlabel("documents about a person")
        axes.set_ylim(bottom=0)
    grid[0][0].set_ylabel("bits that an attacker gets of a person")
    figure.legend(*grid[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    return figure
