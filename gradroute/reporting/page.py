"""One self-contained HTML page, for a run or for a comparison: no network, every value escaped."""

import base64
import json
import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradroute.records.run_folder import final_rows, write_atomically
from gradroute.records.run_reader import read_file, read_manifest, read_metrics, read_names
from gradroute.records.safe_reading import read_text, read_yaml
from gradroute.reporting import language_tables, steering_tables
from gradroute.reporting.published import PUBLISHED, TOLERANCE, setting

ERRORS = ("mse", "mae", "accuracy", "cross_entropy", "cross_entropy_unrouted")
FIGURES = {
    "reconstructions": "Reconstructions: inputs, decoder, certificates, ablations",
    "loss_per_label": "Error by label",
    "accuracy_per_label": "Accuracy by label",
    "confusion": "Confusion: which label is taken for which",
    "mask": "Mask: which group's gradients reach which units",
    "ledger": "Ledger: whose gradients arrived where, and what moved",
    "training_curves": "Training",
    "stages": "Loss of each group after each step",
    "relearning": "Relearning, and fine-tuning",
    "steering": "Words in texts, by what is added to the dimension",
}


@dataclass
class Table:
    """A table whose columns sort; cells are text or numbers. long: its texts have several lines."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    long: bool = False


@dataclass
class Page:
    """What a page shows, from the top: words, tables, documents, figures (title and PNG), listings, folded texts.

    A document is a title, and tokens with their shares, from 0 to 1, which colour them.
    """

    title: str
    verdict: list[str]
    tables: list[Table]
    figures: list[tuple[str, bytes]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    documents: list[language_tables.Coloured] = field(default_factory=list)
    listings: list[Table] = field(default_factory=list)

    def html(self) -> str:
        """The page as one HTML document."""
        import jinja2

        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
        figures = [{"title": title, "data": base64.b64encode(data).decode()} for title, data in self.figures]
        template = environment.get_template("page.html.j2")
        names = ("title", "verdict", "tables", "texts", "documents", "listings")
        return template.render({name: getattr(self, name) for name in names}, figures=figures, shown=_shown)


def _shown(value: float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)


def verdict(rows: list[dict[str, Any]], published: str) -> list[str]:
    """What the final rows of a run say, in words; `published` is its `setting`."""
    scores = {r["group"]: r["value"] for r in rows if r["metric"] == "localization"}
    lines = []
    if scores:
        least = scores.get("all", math.nan)
        word = "split cleanly" if least >= 0.8 else "split in part" if least >= 0.3 else "not split"
        each = ", ".join(f"{group} {value:.2f}" for group, value in scores.items() if group != "all")
        scale = "0: other regions hold a group as much as its own; 1: its own alone"
        lines.append(f"The groups are {word}: localization {each} ({scale}).")
    for (head, region, group, metric), (value, half) in PUBLISHED.get(published, {}).items():
        ours = [
            r["value"]
            for r in rows
            if (r["head"], r["region"], r["group"], r["metric"]) == (head, region, group, metric)
        ]
        if ours:
            agrees = "agrees with" if abs(ours[0] - value) <= TOLERANCE else "differs from"
            lines.append(
                f"{head} {region} on {group}: {metric} {ours[0]:.3f}, which {agrees} the published {value} ± {half}."
            )
    return lines


NORMS = {
    "group": "Group norm looks at one image at a time: one pass, each image under its own mask, is gradient routing.",
    "batch": "Batch norm lets a group's loss reach other images, so that every group had a pass of its own.",
}


def classified(rows: list[dict[str, Any]], names: Mapping[str, Any]) -> list[str]:
    """What a classifier's final rows say, in words: what each region's certificate knows of which group."""
    values = {(r["head"], r["region"], r["group"]): r["value"] for r in rows if r["metric"] == "accuracy"}
    lines = []
    for region in dict.fromkeys(region for head, region, _ in values if head == "certificate"):
        found = {group: values["certificate", region, group] for group in names["groups"]
                 if {("certificate", region, group), ("decoder", "all", group)} <= values.keys()}  # fmt: skip
        said = ", ".join(f"{value:.3f} on {group} (decoder {values['decoder', 'all', group]:.3f})"
                         for group, value in found.items())  # fmt: skip
        lines.append(f"Accuracy of the certificate of {region}: {said}.")
    norm = str(names.get("norm"))
    return [*lines, NORMS[norm]] if norm in NORMS else lines


def _language(run: Path, manifest: dict[str, Any]) -> tuple[list[Table], list[language_tables.Coloured]]:
    """Token weights, completions and steering of a language model, what the run has of them, and coloured documents."""
    weights, completed = language_tables.read_tokens(run, manifest), language_tables.read_completions(run, manifest)
    tables = [Table(*language_tables.token_table(weights))] if weights else []
    tables += [Table(*language_tables.completion_table(completed), long=True)] if completed else []
    if (steered := steering_tables.read_steering(run, manifest)) is not None:
        tables += [
            Table(*table, long=number > 0) for number, table in enumerate(steering_tables.steering_tables(steered))
        ]
    return tables, language_tables.coloured_documents(weights) if weights else []


def run_page(run: Path) -> Path:
    """Write `report.html` of a run from what is in its folder. Raises: UserError if that is damaged."""
    manifest = read_manifest(run)
    rows = final_rows(read_metrics(run, manifest))
    named = read_names(run, manifest)
    names = named["groups"]
    content = read_file(run, "config.yaml", manifest)
    config = read_yaml(content, run / "config.yaml")
    shown = [r for r in rows if r["metric"] in ERRORS]
    values = {(r["head"], r["region"], r["metric"], r["group"]): r["value"] for r in shown}
    keys = list(dict.fromkeys(key[:3] for key in values))
    table = [[*key, *(values.get((*key, group), math.nan) for group in names)] for key in keys]
    note = "Test data: " + "; ".join(dict.fromkeys(f"{r['metric']}: {r['unit']}" for r in shown)) + "."
    more, documents = _language(run, manifest)
    plots = run / "plots"
    found = FIGURES | {p.stem: f"Encoding at {p.stem.removeprefix('encoding_')}" for p in plots.glob("encoding_*.png")}
    page = Page(
        f"{manifest.get('experiment', '')}, seed {manifest.get('seed')}",
        [
            *verdict(rows, setting(config) if isinstance(config, dict) else ""),
            *language_tables.verdict(rows, config),
            *steering_tables.steering_verdict(rows),
            *classified(rows, named),
            f"Started {manifest.get('started')} with gradroute {manifest['packages'].get('gradroute')}.",
        ],
        [Table("Errors of each group", ["head", "region", "metric", *names], table, note), *more],
        [
            (title, read_file(run, f"plots/{name}.png", manifest))
            for name, title in found.items()
            if (plots / f"{name}.png").is_file()
        ],
        [
            ("How to run it again", f"gradroute-run {shlex.quote(f'rerun={run}')}"),
            ("Configuration", read_text(content, run / "config.yaml")),
            ("Manifest", json.dumps(manifest, indent=2)),
        ],
        documents,
    )
    write_atomically(run / "report.html", page.html())
    return run / "report.html"
