"""The record of an audit, `audit.json`: plain data, from which its verdicts follow again."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradroute.audit.findings import Findings, Plan, compared
from gradroute.audit.measures import savings
from gradroute.audit.verdict import Verdict, as_row, has_power, judged, sentence
from gradroute.config.components import ablated_regions
from gradroute.config.doors import TARGET
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.audits import ANCHORS, AUDITED, SUPPRESSED, TWIN

VERSION = 1
NOT_TRIED = "membership inference, steering, larger budgets, other seeds, and any attack that is not listed"


Shares = Mapping[str, Mapping[str, Sequence[float]]]  # recovered, by axis and anchor


@dataclass(frozen=True)
class Context:
    """What an audit is about: the audited run's configuration, the group, the margin and the attacks."""

    config: Config
    kind: str
    group: str
    margin: float
    plan: Plan
    lr: float


def scope(context: Context) -> str:
    """Return what a verdict holds for, as the end of a sentence."""
    config, plan, budget = context.config, context.plan, context.plan.budget
    model = str(config.model[TARGET]).rpartition(".")[2]
    regions = " and ".join(ablated_regions(config))
    noun = "documents" if context.kind == "language" else "images"
    counts = ", ".join(map(str, plan.examples))
    rates = f"{len(budget.rates)} rates from {min(budget.rates):.3g} to {max(budget.rates):.3g}"
    return (
        f"for {config.name} ({model}), group {context.group}, region {regions} ablated, attacks on {counts} {noun} of "
        f"{budget.updates} updates at {rates}, seed {config.seed}"
    )


def recorded(
    findings: Findings, context: Context, runs: Mapping[str, Path | None], missing: Mapping[str, str]
) -> dict[str, Any]:
    """Return the content of `audit.json`."""
    shares = compared(findings)
    subjects = [AUDITED, *(name for name in ANCHORS if name != TWIN and name in runs)]
    verdicts = judged(shares, context.margin, list(missing), subjects)
    where = scope(context)
    lines = [sentence(name, own[AUDITED], context.margin, where) for name, own in verdicts.items()]
    plan = context.plan
    return {
        "version": VERSION,
        "experiment": context.config.name,
        "seed": context.config.seed,
        "task": context.kind,
        "group": context.group,
        "regions": ablated_regions(context.config),
        "margin": context.margin,
        "scope": where,
        "budget": {
            "examples": list(plan.examples), "samples": plan.samples, "updates": plan.budget.updates,
            "batch": plan.budget.batch, "rates": list(plan.budget.rates), "calibration": plan.calibration,
            "probe_points": plan.probe_points, "probe_updates": plan.probe_updates,
            "adapter_examples": list(plan.adapted), "rank": plan.rank,
        },
        "anchors": {name: _anchor(findings, name, run) for name, run in runs.items()},
        "missing": dict(missing),
        "power": has_power(verdicts),
        "axes": _axes(findings, shares, verdicts),
        "sentences": lines,
        "curves": {
            attack: {name: [[x, _number(y)] for x, y in curve] for name, curve in own.items()}
            for attack, own in findings.curves.items()
        },
        "savings": saved(findings),
        "diverged": sum(row["diverged"] for row in findings.attempts),
        "attempts": findings.attempts,
        "not_tried": "; ".join([*(f"{what} ({why})" for what, why in findings.untried.items()), NOT_TRIED]),
    }  # fmt: skip


def _anchor(findings: Findings, name: str, run: Path | None) -> dict[str, Any]:
    return {
        "what": "the audited model" if name == AUDITED else ANCHORS[name],
        "run": None if run is None else f"{run.parent.name}/{run.name}",
        **findings.losses[name].as_row(),
        "divergence": {k: round(v, 6) for k, v in findings.divergences.get(name, {}).items()},
    }


def _axes(findings: Findings, shares: Shares, verdicts: Mapping[str, Mapping[str, Verdict]]) -> list[dict[str, Any]]:
    return [
        {
            "axis": axis.name,
            "unit": axis.unit,
            "higher_is_more": axis.higher,
            "gap": _number(axis.gap),
            "values": {name: [_number(value) for value in own] for name, own in axis.values.items()},
            "shares": {name: [_number(share) for share in own] for name, own in shares.get(axis.name, {}).items()},
            "verdicts": {name: as_row(verdict) for name, verdict in verdicts.get(axis.name, {}).items()},
        }
        for axis in findings.axes()
    ]


def saved(findings: Findings) -> dict[str, dict[str, float | None]]:
    """Return each anchor's lead over the never-trained model while it relearns, in units of loss, by attack."""
    return {
        attack: {name: _number(savings(curve, own[TWIN])) for name, curve in own.items() if name != TWIN}
        for attack, own in findings.curves.items()
        if TWIN in own
    }


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def rows_of(found: Mapping[str, Any], group: str) -> Iterator[tuple[str, str, str, str, float]]:
    """Yield the record's metrics: group, anchor, axis, metric and value. Means over repetitions."""
    for axis in found["axes"]:
        for anchor, shares in axis["shares"].items():
            own = [share for share in shares if share is not None]
            if own:
                yield group, anchor, axis["axis"], "recovered_share", _mean(own)
    for anchor, own_anchor in found["anchors"].items():
        if "forget" in own_anchor["divergence"]:
            yield group, anchor, "behaviour", "divergence", own_anchor["divergence"]["forget"]


def rejudged(found: Mapping[str, Any]) -> dict[str, str | None]:
    """Return the verdict of each axis about the audited model, judged again from the recovered shares in a record."""
    shares = {axis["axis"]: {name: _floats(own) for name, own in axis["shares"].items()} for axis in found["axes"]}
    again = judged(shares, found["margin"], list(found["missing"]))
    return {axis["axis"]: again[axis["axis"]][AUDITED].word for axis in found["axes"]}


def pooled(records: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Verdict], list[str], bool]:
    """Return the verdict of each axis over audits of several seeds, its sentence, and whether some axis has power.

    With one record these are its own. With several, an axis's interval is over seeds, of which each counts by its mean
    over repetitions; an anchor that one audit lacks is missing.

    Raises: UserError for records of different experiments, groups, margins, attacks, or of the same seed.
    """
    first, seeds = records[0], [found["seed"] for found in records]
    for key in ("experiment", "group", "regions", "margin", "budget"):
        if odd := next((found for found in records if found[key] != first[key]), None):
            raise UserError(f"audits cannot be pooled: seeds {first['seed']} and {odd['seed']} differ in {key}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"audits cannot be pooled: seeds {seeds}; give each seed once")
    missing = sorted({name for found in records for name in found["missing"]})
    by_seed = [
        {axis["axis"]: {name: _floats(own) for name, own in axis["shares"].items()} for axis in found["axes"]}
        for found in records
    ]
    shares = by_seed[0]
    where = first["scope"]
    if len(records) > 1:
        axes = [axis for axis in by_seed[0] if all(axis in own for own in by_seed)]
        shares = {
            axis: {name: [_mean(own[axis][name]) for own in by_seed]
                   for name in by_seed[0][axis] if all(own[axis].get(name) for own in by_seed)}
            for axis in axes
        }  # fmt: skip
        where = f"{where.rpartition(', seed ')[0]}, seeds {', '.join(map(str, seeds))}"
    subjects = (AUDITED, SUPPRESSED)
    verdicts = judged(shares, first["margin"], missing, subjects)
    own = {axis: each[AUDITED] for axis, each in verdicts.items()}
    lines = [sentence(axis, verdict, first["margin"], where) for axis, verdict in own.items()]
    return own, lines, has_power(verdicts)


def _floats(values: Sequence[float | None]) -> list[float]:
    return [math.nan if value is None else value for value in values]


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
