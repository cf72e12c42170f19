"""The data that plots draw from: a run's rows, arrays and names, and a fixed colour for each region."""

import io
from pathlib import Path
from typing import Any

import numpy.typing as npt

from gradroute.records.metrics import final_rows
from gradroute.records.run_reader import read_file, read_manifest, read_names
from gradroute.records.safe_reading import read_arrays
from gradroute.records.tables import read_ledger, read_metrics

DECODER_COLOUR = "#4d4d4d"
REGION_COLOURS = (
    "#1f77b4",
    "#ff7f0e",
    "#2ca02c",
    "#d62728",
    "#9467bd",
    "#8c564b",
    "#e377c2",
    "#7f7f7f",
    "#bcbd22",
    "#17becf",
)
LINE_STYLES = ("-", "--", ":", "-.")
Array = npt.NDArray[Any]


class RunData:
    """The data of one run for plots, read from its folder alone. Raises: UserError if it cannot be read.

    Attributes:
        rows: of `metrics.csv`. final: the test rows of the last step. ledger: rows of `ledger.csv`.
        names: `figures.json`: groups, regions, labels and more. arrays: `samples.npz`, by name.
        heads: head and region of everything that has a test error. noun: the word for a label, such as digit.
    """

    def __init__(self, run: Path) -> None:
        self.folder = run
        manifest = read_manifest(run)
        self.rows = read_metrics(run, manifest)
        self.final = final_rows(self.rows)
        self.names = read_names(run, manifest)
        packed = io.BytesIO(read_file(run, "samples.npz", manifest))
        self.arrays: dict[str, Array] = dict(read_arrays(packed, run / "samples.npz"))
        errors = ("mse", "cross_entropy")
        self.heads = list(dict.fromkeys((row["head"], row["region"]) for row in self.final if row["metric"] in errors))
        self.ledger = read_ledger(run, manifest) if (run / "ledger.csv").is_file() else []
        self.noun: str = self.names.get("label_noun", "")

    def trained_on(self, usual: str, label: str) -> tuple[str, str]:
        """Return the metric that the model was trained on and its axis label: `label` for the `usual` metric."""
        heads = ("decoder", "model")
        first = next((r for r in self.rows if r["split"] == "train" and r["head"] in heads), None)
        if first is None or first["metric"] == usual:
            return usual, label
        return first["metric"], f"{first['metric']} ({first['unit']})"

    def colour(self, region: str) -> str:
        """Return a region's colour; the whole decoder is grey."""
        regions = list(self.names["regions"])
        return REGION_COLOURS[regions.index(region) % 10] if region in regions else DECODER_COLOUR

    def title(self, head: str, region: str) -> str:
        """Return a head's name for legends."""
        kinds = {
            "decoder": "decoder",
            "certificate": f"certificate {region}",
            "fresh_certificate": f"fresh certificate {region}",
            "decoder_ablated": f"decoder, {region} ablated ({self.names['ablation']})",
            "model_ablated": f"{region} ablated ({self.names['ablation']})",
        }
        return kinds.get(head, head.removeprefix("model_").replace("_", " "))

    def group_of(self, label: int) -> str:
        """Return the group that a label belongs to, or "several groups"."""
        return next((g for g, labels in self.names["labels"].items() if label in labels), "several groups")
