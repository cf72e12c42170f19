"""What a run's page shows about steering by one scalar, read from its folder, which may come from a stranger."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.reporting.language_tables import MANY, Titled, read_checked, side_by_side

FILE = "steering.json"
KINDS = {"routed": "routed", "related": "related, held out", "": ""}
MEASURED = ("related", "matched", "routed", "other")
LEVEL = "kl_"  # begins the label of a strength that has a given KL


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100_000


def _effect(value: Any) -> bool:
    mean, half, count = value
    return all(n is None or _number(n) for n in (mean, half)) and type(count) is int


def _dimension(value: Any) -> bool:
    measured = value["measured"]
    return type(value["unit"]) is int and all(
        _text(label)
        and _number(own["strength"])
        and _number(own["kl"])
        and all(_effect(own[kind]) for kind in MEASURED)
        and all(own["times"][kind] is None or _number(own["times"][kind]) for kind in MEASURED[:3])
        for label, own in measured.items()
    )


def _holds(found: Any) -> bool:
    nearest = all(_text(token) and _number(cosine) and kind in KINDS for token, cosine, kind in found["nearest"])
    completed = all(_text(prompt) and _number(by) and _text(text) for prompt, by, text in found["completions"])
    dimensions, words = found.get("dimensions", []), found.get("words", {})  # runs before these were measured lack them
    measured = isinstance(dimensions, list) and len(dimensions) <= MANY and all(map(_dimension, dimensions))
    spelt = isinstance(words, dict) and all(_text(word) for own in words.values() for word in own)
    return type(found["unit"]) is int and nearest and completed and measured and spelt


def read_steering(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the step `steer` wrote; None if the run does not steer. Raises: UserError if it is damaged."""
    if not (run / FILE).is_file():
        return None
    right = "no unit, nearest tokens with cosine and kind, completions with prompt and strength, or likelihoods"
    return dict(read_checked(run, FILE, manifest, _holds, right))


def steering_tables(found: Mapping[str, Any]) -> list[Titled]:
    """Return the completions by strength, the likelihoods of words, and the tokens nearest to the dimension.

    Of a run that does not steer, which has found nothing, return [].
    """
    if not found:
        return []
    unit = found["unit"]
    rows = [
        [n, token.replace(" ", "␣"), cosine, KINDS[kind]] for n, (token, cosine, kind) in enumerate(found["nearest"], 1)
    ]
    note = "Ranked by the absolute cosine between a token's row of the unembedding and the dimension."
    nearest = (f"Tokens nearest to dimension {unit}", ["rank", "token", "cosine", "kind"], rows, note)
    return [_completions(found), *_likelihoods(found), nearest]


def _completions(found: Mapping[str, Any]) -> Titled:
    own = found["dimensions"][0]["measured"] if found.get("dimensions") else {}
    levels = {m["strength"]: label.removeprefix(LEVEL) for label, m in own.items() if label.startswith(LEVEL)}
    by_strength: dict[str, list[Mapping[str, str]]] = {}
    for prompt, strength, text in found["completions"]:
        title = f"{strength:+.4g}" + (f" (KL {levels[strength]})" if strength in levels else "")
        by_strength.setdefault(title, []).append({"group": "", "prompt": prompt, "text": text})
    columns, table = side_by_side(by_strength)
    note = "Positive values point towards the routed words. All columns are sampled with the same random numbers."
    title = f"Completions by the value added to dimension {found['unit']}"
    return title, columns[1:], [r[1:] for r in table], note


def _likelihoods(found: Mapping[str, Any]) -> list[Titled]:
    """Return the log-likelihood ratios of every kind of word, along the dimension and along the placebos."""
    rows = [
        [
            str(dimension["unit"]),
            float(own["kl"]),
            float(own["strength"]),
            *(_shown(own[kind]) for kind in MEASURED),
            *("" if own["times"][kind] is None else f"{own['times'][kind]:.2f}" for kind in MEASURED[:3]),
        ]
        for dimension in found.get("dimensions", [])
        for own in dimension["measured"].values()
    ]
    columns = ["dimension", "KL", "value added", "related", "matched", "routed", "other tokens",
               "related ×", "matched ×", "routed ×"]  # fmt: skip
    note = (
        f"Dimension {found['unit']} is the routed one, the others are random. KL: mean divergence of the next token, "
    )
    note += "unsteered from steered, in nats. Then the mean log-likelihood ratio of words where they stand in the test "
    note += "documents, steered to unsteered, in nats; ± is the 95 % interval over documents. ×: how many times as "
    note += "likely the words are at any position. Related words are held out; matched ones are as frequent in the "
    note += "training documents."
    for kind, own in found.get("words", {}).items():
        note += f" {kind.capitalize()}: {', '.join(own)}."
    return [("Likelihood of words", columns, rows, note)] if rows else []


def _shown(effect: Sequence[Any]) -> str:
    mean, half, _ = effect
    return "" if mean is None else f"{mean:+.3f}" + ("" if half is None else f" ± {half:.3f}")


def steering_verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences about steering from a run's final rows; [] if the run does not steer."""
    nearest = {row["region"]: row["value"] for row in rows if row["metric"] == "related_share"}
    own = [(region, value) for region, value in nearest.items() if region.startswith("dimension_")]
    steered = {row["region"]: row["value"] for row in rows if row["metric"] == "related_frequency"}
    lines = _likelier(rows)
    if own:
        region, value = own[0]
        chance = nearest.get("random_dimensions")
        beside = "" if chance is None else f"; for random dimensions {chance:.0%}"
        lines.append(
            f"Of the tokens nearest to {region.replace('_', ' ')}, {value:.0%} are held-out related words{beside}."
        )
    if steered:
        most, plain = max(steered, key=lambda region: steered[region]), steered.get("+0")
        times = f", {steered[most] / plain:.1f} times the share without" if plain else ""
        lines.append(f"Related words are {steered[most]:.1%} of a text's tokens with {_said(most)}{times}.")
    return lines


def _said(label: str) -> str:
    return f"steering at a KL of {label.removeprefix(LEVEL)}" if label.startswith(LEVEL) else f"{label} added"


def _likelier(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences about the strongest steering: how much likelier each kind of word becomes."""
    values = {(row["head"], row["region"], row["metric"]): row["value"] for row in rows}
    labels = {region: value for (head, region, metric), value in values.items() if (head, metric) == ("steered", "kl")}
    towards = [label for label in labels if values.get(("steered", label, "strength"), 0) > 0]
    if not towards:
        return []
    label = max(towards, key=lambda label: labels[label])
    kinds = (("related", "held-out related words"), ("matched", "words of their frequency"), ("routed", "routed words"))
    heads = [("steered", kind, what) for kind, what in kinds]
    heads.append(("steered_placebo", "related", "related words along random dimensions"))

    def said(of: str, likelier: Callable[[float], float]) -> str:
        found = [(values.get((head, label, f"{kind}_{of}")), what) for head, kind, what in heads]
        return ", ".join(f"{what} {likelier(value):.2f} times" for value, what in found if value is not None)

    standing = said("llr", lambda ratio: math.exp(min(ratio, 50.0)))
    lines = [f"Steering at a KL of {labels[label]:.2g} nats per token makes {standing} as likely where they stand "
             "(geometric mean)."]  # fmt: skip
    anywhere = said("times", float)
    return [*lines, *([f"At any position it makes {anywhere} as likely."] if anywhere else [])]
