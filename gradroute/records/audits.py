"""The record of an audit, `audit.json`: names of anchors and verdicts, and reading it from a folder of a stranger."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.errors import UserError
from gradroute.records.run_reader import read_file
from gradroute.records.safe_reading import read_json

FILE = "audit.json"
AUDITED, INTACT = "audited", "intact"
TWIN, SECOND, THIRD, FOURTH = "never_trained", "never_trained_2", "never_trained_3", "never_trained_4"
CONTROL, LABELS, PLACEBO, SUPPRESSED = "never_routed", "placebo_labels", "placebo_region", "suppressed"
ANCHORS = {
    INTACT: "the audited model before the ablation",
    TWIN: "never trained on the group: the same updates without its data, ablated alike",
    SECOND: "the same with another seed: the noise floor",
    THIRD: "the same with a third seed: the noise floor",
    FOURTH: "the same with a fourth seed, to measure what audits can tell",
    CONTROL: "never routed, ablated alike",
    LABELS: "routed by shuffled labels of the same shares, ablated alike",
    PLACEBO: "the audited model with as many other units ablated",
    SUPPRESSED: "the intact model, trained only to hide the group: see suppress_to",
}
USUAL = tuple(name for name in ANCHORS if name != FOURTH)  # which an audit makes unless it is told otherwise
REQUIRED = (INTACT, TWIN, SECOND, SUPPRESSED)  # without one of these there is no verdict
FLOORS = (SECOND, THIRD, FOURTH)  # whose differences to the never-trained twin are noise
TRAINED = (TWIN, *FLOORS, CONTROL, LABELS)  # anchors with a training of their own

HIDDEN, HELD, OPEN, INVALID = (
    "suppressed", "not recovered under these attacks", "inconclusive", "invalid (a control failed)",
)  # fmt: skip
NO_POWER = "this audit has no power here"
RANK = {HELD: 0, OPEN: 1, INVALID: 2, None: 2, HIDDEN: 3}  # from the best to the worst; None is no verdict
TEXT, ITEMS = 2000, 100_000  # longest text, and most entries of a list
NAMES = (AUDITED, *ANCHORS)


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= TEXT


def _number(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e12)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= ITEMS and all(map(_number, value))


def _verdict(value: Any) -> bool:
    own = value["verdict"] in RANK and _text(value["reason"])
    return own and all(_number(value[key]) for key in ("mean", "low", "high"))


def _axis(value: Any) -> bool:
    shares = all(name in NAMES and _numbers(own) for name, own in value["shares"].items())
    judged = all(name in NAMES and _verdict(own) for name, own in value["verdicts"].items())
    return _text(value["axis"]) and _text(value["unit"]) and _number(value["gap"]) and shares and judged


def _curve(value: Any) -> bool:
    return all(len(point) == 2 and _numbers(point) and point[0] is not None for point in value)


def _anchor(name: str, value: Any) -> bool:
    losses = all(_number(value[key]) for key in ("forget", "retain"))
    return name in NAMES and _text(value["what"]) and losses and all(map(_number, value["divergence"].values()))


def _holds(found: Any) -> bool:
    texts = all(_text(found[key]) for key in ("experiment", "group", "scope", "not_tried", "task"))
    counted = type(found["seed"]) is int and type(found["diverged"]) is int and isinstance(found["power"], bool)
    axes = len(found["axes"]) <= 100 and all(map(_axis, found["axes"]))
    anchors = all(_anchor(name, own) for name, own in found["anchors"].items())
    lacking = all(name in NAMES and _text(why) for name, why in found["missing"].items())
    curves = [curve for own in found["curves"].values() for name, curve in own.items() if name in NAMES]
    spared = [own for each in found.get("savings", {}).values() for own in each.items()]  # not in older records
    anchors = anchors and all(name in NAMES and _number(value) for name, value in spared)
    lines = isinstance(found["sentences"], list) and all(map(_text, found["sentences"]))
    margin = _number(found["margin"]) and found["margin"] is not None
    named = isinstance(found["regions"], list) and all(map(_text, found["regions"]))
    named = named and isinstance(found["budget"], dict)
    attempts = isinstance(found["attempts"], list) and len(found["attempts"]) <= ITEMS
    return all((named, texts, counted, axes, anchors, lacking, lines, margin, attempts, *map(_curve, curves)))


def checked(found: Any, path: Path) -> dict[str, Any]:
    """Return the content of an audit's record. Raises: UserError, naming the file, if it is not one."""
    try:
        if isinstance(found, dict) and _holds(found):
            return found
    except (KeyError, TypeError, ValueError, AttributeError):
        pass
    raise UserError(f"{path}: damaged (not the record of an audit)")


def read_audit(run: Path, manifest: Mapping[str, Any] | None = None) -> dict[str, Any] | None:
    """Return the record of a run's audit; None if it has none. Raises: UserError if it is damaged."""
    if not (run / FILE).is_file():
        return None
    return checked(read_json(read_file(run, FILE, manifest), run / FILE), run / FILE)


def words(found: Mapping[str, Any], anchor: str = AUDITED) -> dict[str, str | None]:
    """Return the verdict of each axis about the audited model, or about an anchor."""
    return {axis["axis"]: axis["verdicts"].get(anchor, {}).get("verdict") for axis in found["axes"]}
