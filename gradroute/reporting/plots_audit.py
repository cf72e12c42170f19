"""Draw an audit: the recovery curves of the audited model and of all anchors, one panel for each trained attack."""

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gradroute.records.audits import ANCHORS, AUDITED, SUPPRESSED, TWIN, read_audit
from gradroute.records.run_reader import read_manifest
from gradroute.reporting.run_data import RunData

TONES = ("#7f7f7f", "#1f77b4", "#17becf", "#9edae5", "#c7c7c7", "#9467bd", "#8c564b", "#bcbd22", "#d62728")
COLOURS = dict(zip(ANCHORS, TONES, strict=True))
STYLES = {AUDITED: "-", TWIN: "-", SUPPRESSED: "-"}
COLUMNS = 2


def recovery(run: RunData) -> Figure | None:
    """The group's test loss against the updates of each trained attack; None for a run that was not audited."""
    found = read_audit(run.folder, read_manifest(run.folder))
    if found is None or not found["curves"]:
        return None
    attacks = list(found["curves"])
    lines = -(-len(attacks) // COLUMNS)
    figure, grid = plt.subplots(
        lines, COLUMNS, figsize=(9, 0.8 + 3.1 * lines), sharey=True, squeeze=False, layout="constrained"
    )
    for axes, attack in zip(grid.flat, attacks, strict=False):
        for anchor, curve in found["curves"][attack].items():
            points = [(x, y) for x, y in curve if y is not None]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    color=COLOURS.get(anchor, "black"),
                    linestyle=STYLES.get(anchor, "--"),
                    linewidth=2.2 if anchor in STYLES else 1.2,
                    label=anchor.replace("_", " "),
                )
        axes.set_title(attack.replace("_", " "), fontsize=10)
        axes.set_xlabel("update of the attack")
    for axes in grid.flat[len(attacks) :]:
        axes.axis("off")
    for line in grid:
        line[0].set_ylabel("loss on the group (test)")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=4, frameon=False, fontsize=9)
    return figure
