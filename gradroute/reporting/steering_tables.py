"""What a run's page shows of steering by one scalar, read from its folder, which a stranger may have made."""

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
    """What `steering.steering` wrote, if the run steers. Raises: UserError if it is damaged."""
    if not (run / FILE).is_file():
        return None
    right = "no unit, nearest tokens with cosine and kind, and completions with prompt and strength"
    return dict(read_checked(run, FILE, manifest, _holds, right))


def steering_tables(found: Mapping[str, Any]) -> list[Titled]:
    """The words nearest to the dimension, and what each prompt goes on with at each strength."""
    unit = found["unit"]
    rows = [
        [n, token.replace(" ", "␣"), cosine, KINDS[kind]] for n, (token, cosine, kind) in enumerate(found["nearest"], 1)
    ]
    note = "By |cosine| of the unembedding's rows with the dimension; the sign is the row's."
    nearest = (f"Tokens nearest to dimension {unit}", ["rank", "token", "cosine", "kind"], rows, note)
    by_strength: dict[str, list[Mapping[str, str]]] = {}
    for prompt, strength, text in found["completions"]:
        by_strength.setdefault(f"{strength:+g}", []).append({"group": "", "prompt": prompt, "text": text})
    columns, table = side_by_side(by_strength)
    note = "In the direction in which the routed words lie; all strengths draw with the same random numbers."
    return [
        nearest,
        (f"Completions, with so much added to dimension {unit}", columns[1:], [r[1:] for r in table], note),
    ]


def steering_verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """What a run's final rows say of steering, in words; nothing if it does not steer."""
    nearest = {row["region"]: row["value"] for row in rows if row["metric"] == "related_share"}
    own = [(region, value) for region, value in nearest.items() if region.startswith("dimension_")]
    steered = {row["region"]: row["value"] for row in rows if row["metric"] == "related_frequency"}
    lines = []
    if own:
        region, value = own[0]
        chance = nearest.get("random_dimensions")
        beside = "" if chance is None else f"; of random dimensions {chance:.0%}"
        lines.append(
            f"Of the tokens nearest to {region.replace('_', ' ')}, {value:.0%} are held-out related words{beside}."
        )
    if steered:
        most, plain = max(steered, key=lambda region: steered[region]), steered.get("+0")
        times = f", {steered[most] / plain:.1f} times that without" if plain else ""
        lines.append(f"Related words are {steered[most]:.1%} of a text's tokens with {most} added{times}.")
    return lines
