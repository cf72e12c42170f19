"""What a run's page shows about steering by one scalar, read from its folder, which may come from a stranger."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.reporting.language_tables import Titled, read_checked, side_by_side

FILE = "steering.json"
KINDS = {"routed": "routed", "related": "related, held out", "": ""}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e9


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100_000


def _holds(found: Any) -> bool:
    nearest = all(_text(token) and _number(cosine) and kind in KINDS for token, cosine, kind in found["nearest"])
    completed = all(_text(prompt) and _number(by) and _text(text) for prompt, by, text in found["completions"])
    return type(found["unit"]) is int and nearest and completed


def read_steering(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what the step `steer` wrote; None if the run does not steer. Raises: UserError if it is damaged."""
    if not (run / FILE).is_file():
        return None
    right = "no unit, nearest tokens with cosine and kind, or completions with prompt and strength"
    return dict(read_checked(run, FILE, manifest, _holds, right))


def steering_tables(found: Mapping[str, Any]) -> list[Titled]:
    """Return the tokens nearest to the dimension, and each prompt's completions at each strength."""
    unit = found["unit"]
    rows = [
        [n, token.replace(" ", "␣"), cosine, KINDS[kind]] for n, (token, cosine, kind) in enumerate(found["nearest"], 1)
    ]
    note = "Ranked by the absolute cosine between a token's row of the unembedding and the dimension."
    nearest = (f"Tokens nearest to dimension {unit}", ["rank", "token", "cosine", "kind"], rows, note)
    by_strength: dict[str, list[Mapping[str, str]]] = {}
    for prompt, strength, text in found["completions"]:
        by_strength.setdefault(f"{strength:+g}", []).append({"group": "", "prompt": prompt, "text": text})
    columns, table = side_by_side(by_strength)
    note = "Positive values point towards the routed words. All columns are sampled with the same random numbers."
    return [
        nearest,
        (f"Completions by the value added to dimension {unit}", columns[1:], [r[1:] for r in table], note),
    ]


def steering_verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences about steering from a run's final rows; [] if the run does not steer."""
    nearest = {row["region"]: row["value"] for row in rows if row["metric"] == "related_share"}
    own = [(region, value) for region, value in nearest.items() if region.startswith("dimension_")]
    steered = {row["region"]: row["value"] for row in rows if row["metric"] == "related_frequency"}
    lines = []
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
        lines.append(f"Related words are {steered[most]:.1%} of a text's tokens with {most} added{times}.")
    return lines
