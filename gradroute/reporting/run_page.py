"""Write the page of a run, from its folder alone."""

import json
import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.records.atomic import write_atomically
from gradroute.records.audits import read_audit
from gradroute.records.metrics import ERRORS, PROFILE, final_rows
from gradroute.records.run_reader import read_file, read_manifest, read_names
from gradroute.records.safe_reading import read_text, read_yaml
from gradroute.records.tables import read_metrics
from gradroute.reporting import (
    audit_tables,
    behaviour_tables,
    language_tables,
    policy_tables,
    profile_tables,
    secrets_tables,
    steering_tables,
)
from gradroute.reporting.page import Coloured, Page, Table
from gradroute.reporting.published import PUBLISHED, TOLERANCE, setting

FIGURES = {
    "recovery": "Audit: loss on the group under relearning, of the audited model and its anchors",
    "reconstructions": "Reconstructions: inputs, decoder, certificates, ablations",
    "loss_per_label": "Error by label",
    "accuracy_per_label": "Accuracy by label",
    "confusion": "Confusion: share of each label's images that is taken for each label",
    "mask": "Mask: which group's gradients reach which units",
    "mask_found": "Why this mask: agreement of the groups' gradients at candidate sites, and ablations",
    "ledger": "Ledger: which group's gradients reached which region, and how far it moved",
    "training_curves": "Training",
    "secrets": "What an attacker gets of people's secrets, by the number of documents about them",
    "steering_likelihood": "Likelihood of words when steered",
    "stages": "Loss of each group after each step",
    "relearning": "Loss during fine-tuning and relearning",
    "steering": "Frequency of words in texts, by the value added to the dimension",
}


def verdict(rows: list[dict[str, Any]], published: str) -> list[str]:
    """Return sentences about a run's final rows; `published` is the run's `setting`."""
    scores = {r["group"]: r["value"] for r in rows if r["metric"] == "localization"}
    lines = []
    if scores:
        least = scores.get("all", math.nan)
        word = "split cleanly" if least >= 0.8 else "partly split" if least >= 0.3 else "not split"
        each = ", ".join(f"{group} {value:.2f}" for group, value in scores.items() if group != "all")
        scale = "0: the other regions hold as much of a group as its own; 1: they hold nothing of it"
        lines.append(f"The groups are {word}: localization {each} ({scale}).")
    for (head, region, group, metric), (value, half) in PUBLISHED.get(published, {}).items():
        ours = [
            r["value"]
            for r in rows
            if (r["head"], r["region"], r["group"], r["metric"]) == (head, region, group, metric)
        ]
        if ours:
            agrees = "agrees with" if abs(ours[0] - value) <= TOLERANCE else "differs from"
            said = f"{metric} {ours[0]:.3f}, which {agrees} the published {value:.2f} ± {half:.2f}"
            lines.append(f"{head} {region} on {group}: {said}.")
    return lines


LEADING = (
    "returns",
    "recovery",
    "reconstructions",
    "accuracy_per_label",
    "secrets",
    "steering_likelihood",
    "stages",
    "encoding_",
)  # the first that the run has leads the page
NORMS = {
    "group": "Group norm looks at one image at a time, so one pass suffices, with each image under its own mask.",
    "batch": "Batch norm lets a group's loss reach other images, so every group had a pass of its own.",
}


def classified(rows: list[dict[str, Any]], names: Mapping[str, Any]) -> list[str]:
    """Return sentences about a classifier's final rows: the accuracy of each region's certificate on each group."""
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


def _language(run: Path, manifest: dict[str, Any]) -> tuple[list[Table], list[Coloured]]:
    """Return the tables of token weights and completions that the run has, and its coloured documents."""
    weights, completed = language_tables.read_tokens(run, manifest), language_tables.read_completions(run, manifest)
    tables = [Table(*language_tables.token_table(weights))] if weights else []
    tables += [Table(*language_tables.completion_table(completed), long=True)] if completed else []
    return tables, language_tables.coloured_documents(weights) if weights else []


def _figures(run: Path, manifest: Mapping[str, Any], captions: Mapping[str, str]) -> dict[str, tuple[str, bytes]]:
    """Return title and PNG, by name, of each plot in the folder that is built in or has a caption."""
    plots = run / "plots"
    found = FIGURES | {p.stem: f"Encoding at {p.stem.removeprefix('encoding_')}" for p in plots.glob("encoding_*.png")}
    titles = {**found, **{name: caption for name, caption in captions.items() if name not in FIGURES}}
    return {
        name: (title, read_file(run, f"plots/{name}.png", manifest))
        for name, title in titles.items()
        if (plots / f"{name}.png").is_file()
    }


def _found_mask(run: Path, manifest: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the routing that a pilot found before the run, if one did, with its paragraph of why."""
    name = "routing.yaml"
    if name not in manifest["files"]:
        return []
    return [("The mask that was found, and why", read_text(read_file(run, name, manifest), run / name))]


OTHERS = ("monitor", "score", "nearest", "steered", "steered_placebo", PROFILE)  # heads without errors of groups


def _errors(rows: list[dict[str, Any]], groups: list[str]) -> Table:
    """Return the error of every head on each group."""
    known = [r for r in rows if r["group"] in groups and r["head"] not in OTHERS]
    known = [r for r in known if not secrets_tables.of_secrets(r["metric"])]
    shown = [r for r in known if r["metric"] in ERRORS or r["split"] == "test"]
    values = {(r["head"], r["region"], r["metric"], r["group"]): r["value"] for r in shown}
    keys = list(dict.fromkeys(key[:3] for key in values))
    table = [[*key, *(values.get((*key, group), math.nan) for group in groups)] for key in keys]
    note = "Test data: " + "; ".join(dict.fromkeys(f"{r['metric']}: {r['unit']}" for r in shown)) + "."
    return Table("Errors of each group", ["head", "region", "metric", *groups], table, note)


def _sentences(rows: list[dict[str, Any]], names: dict[str, Any], config: Any, audit: Any) -> list[str]:
    """Return what the run shows, in sentences, of which the first is the page's headline."""
    return [
        *secrets_tables.verdict(rows),
        *audit_tables.audit_verdict(audit),
        *behaviour_tables.verdict(rows),
        *profile_tables.verdict(rows),
        *verdict(rows, setting(config) if isinstance(config, dict) else ""),
        *language_tables.verdict(rows, config),
        *steering_tables.steering_verdict(rows),
        *classified(rows, names),
        *policy_tables.verdict(rows, names),
    ]


def run_page(run: Path, captions: Mapping[str, str] | None = None) -> Path:
    """Write a run's `report.html` from its folder and return its path: the result first, then tables, plots, the rest.

    captions: of plots that are not built in, by name. Raises: UserError if the folder is damaged.
    """
    manifest = read_manifest(run)
    rows = final_rows(read_metrics(run, manifest))
    names = read_names(run, manifest)
    content = read_file(run, "config.yaml", manifest)
    config = read_yaml(content, run / "config.yaml")
    more, documents = _language(run, manifest)
    found = steering_tables.read_steering(run, manifest)
    steered = [Table(*table, long=not n) for n, table in enumerate(steering_tables.steering_tables(found or {}))]
    secrets = [Table(*table) for table in secrets_tables.tables(rows)]
    profiles = [Table(*table) for table in profile_tables.profile_tables(rows)]
    written = [Table(*table) for table in behaviour_tables.behaviour_tables(rows)]
    audit = read_audit(run, manifest)
    audited = [Table(*table, long=True) for table in audit_tables.audit_tables(audit)]
    figures = _figures(run, manifest, captions or {})
    lead = next((name for name in figures if name.startswith(LEADING)), None)
    first = 2 if lead == "steering_likelihood" else 0  # the completions are beside the figure, the likelihoods below
    acts = "actions" in names
    main = Table(*policy_tables.return_table(rows, names["groups"])) if acts else _errors(rows, names["groups"])
    order = sorted(figures, key=lambda name: acts and name in FIGURES)  # of a policy, the mask comes last
    page = Page(
        f"{manifest.get('experiment', '')}, seed {manifest.get('seed')}",
        [
            *_sentences(rows, names, config, audit),
            f"Started {manifest.get('started')} with gradroute {manifest['packages'].get('gradroute')}.",
        ],
        [*audited, *profiles, *written, *steered[:first], *secrets, main, *more, *steered[first:]],
        [figures[name] for name in order if name != lead],
        [
            ("How to run it again", f"gradroute-run {shlex.quote(f'rerun={run}')}"),
            *_found_mask(run, manifest),
            ("Configuration", read_text(content, run / "config.yaml")),
            ("Manifest", json.dumps(manifest, indent=2)),
        ],
        documents,
        lead=[figures[lead]] if lead is not None else [],
    )
    write_atomically(run / "report.html", page.html())
    return run / "report.html"
