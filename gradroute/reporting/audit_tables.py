"""What a run's page shows of an audit: the sentences, one table of axes, one of anchors, and what was not tried."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from gradroute.records.audits import AUDITED, HIDDEN, NO_POWER, words
from gradroute.reporting.language_tables import Titled

SHOWN = (
    "never_trained_2", "never_trained_3", "suppressed", "intact", "never_routed", "placebo_labels", "placebo_region",
)  # fmt: skip


def audit_verdict(found: Mapping[str, Any] | None) -> list[str]:
    """Return sentences about an audit, the most important first; [] if the run was not audited."""
    if found is None:
        return []
    own = words(found)
    if lacking := [name for name in found["missing"] if any(word is None for word in own.values())]:
        return [f"No verdict: {', '.join(lacking)} missing. {found['missing'][lacking[0]]}."]
    if not found["power"]:
        return [f"No verdict: {NO_POWER}, {found['scope']}."]
    said = {word: [axis for axis, each in own.items() if each == word] for word in dict.fromkeys(own.values())}
    order = sorted(said, key=lambda word: word != HIDDEN)
    parts = [f"{word} on {', '.join(axis.replace('_', ' ') for axis in said[word])}" for word in order]
    return [f"Audit: {'; '.join(parts)}; {found['scope']}."]


def _interval(verdict: Mapping[str, Any]) -> str:
    if verdict["mean"] is None:
        return ""
    bounds = "" if verdict["low"] is None else f" [{verdict['low']:+.2f}, {verdict['high']:+.2f}]"
    return f"{verdict['mean']:+.2f}{bounds}"


def _share(shares: Mapping[str, Sequence[float | None]], anchor: str) -> float:
    own = [share for share in shares.get(anchor, ()) if share is not None]
    return sum(own) / len(own) if own else math.nan


def audit_tables(found: Mapping[str, Any] | None) -> list[Titled]:
    """Return the table of axes and the table of anchors; [] if the run was not audited."""
    if found is None:
        return []
    columns = ["axis", "verdict", "audited", *(name.replace("_", " ") for name in SHOWN), "why"]
    rows: list[list[Any]] = []
    for axis in found["axes"]:
        verdict = axis["verdicts"].get(AUDITED)
        if verdict is not None:
            shares = [_share(axis["shares"], name) for name in SHOWN]
            word = verdict["verdict"] or "no verdict"
            rows.append([axis["axis"].replace("_", " "), word, _interval(verdict), *shares, verdict["reason"]])
    tried = found["attempts"]
    note = (
        "Recovered share: 0 is a model never trained on the group, 1 the intact one; 95 % interval over repetitions of "
        f"one seed, margin {found['margin']:g}. Axes are never averaged. {found['diverged']} of {len(tried)} "
        f"trained attacks diverged and were not chosen where another was better. Not tried: {found['not_tried']}."
    )
    return [("Audit: axes", columns, rows, note), *_savings(found), _anchors(found)]


def _savings(found: Mapping[str, Any]) -> list[Titled]:
    """Return the table of savings; [] for a record without them."""
    columns = ["attack", *(name.replace("_", " ") for name in (AUDITED, *SHOWN))]
    rows = [
        [attack.replace("_", " "), *(math.nan if own.get(n) is None else own[n] for n in (AUDITED, *SHOWN))]
        for attack, own in found.get("savings", {}).items()
    ]
    note = "Mean lead of a model over the never-trained one while both relearn: the area between their recovery curves "
    note += "on test data, divided by the updates, in units of loss."
    return [("Audit: savings", columns, rows, note)] if rows else []


def _anchors(found: Mapping[str, Any]) -> Titled:
    columns = ["model", "loss on the group", "loss on the rest", "KL on the group", "KL on the rest", "what it is"]
    rows = [
        [
            name.replace("_", " "),
            *(math.nan if own[key] is None else float(own[key]) for key in ("forget", "retain")),
            *(float(own["divergence"].get(key, math.nan)) for key in ("forget", "retain")),
            own["what"],
        ]
        for name, own in found["anchors"].items()
    ]
    rows += [[name.replace("_", " "), *[math.nan] * 4, f"missing: {why}"] for name, why in found["missing"].items()]
    note = "Before any attack, on test data. KL: divergence from the never-trained model, in nats; that of the other "
    note += "never-trained models is the noise floor."
    return "Audit: models", columns, rows, note
