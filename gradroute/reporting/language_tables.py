"""What the page of a language model says beside tables of errors: words, token weights, documents, completions.

Read from a run's folder, which a stranger may have made; tables are returned as title, columns, rows and a note.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gradroute.errors import UserError
from gradroute.records.metrics import RELEARNED
from gradroute.records.run_reader import read_file
from gradroute.records.safe_reading import read_json
from gradroute.reporting.page import Coloured

TOKENS, COMPLETIONS = "tokens.json", "completions.json"
DONE = {"model_ablated": "ablation", "model_unlearned": "unlearning", "model_finetuned": "fine-tuning"}
STAGES = ("model", *DONE)  # in the order of the steps
LONGEST = 100_000  # characters of one text
MANY = 10_000  # rows and tokens that a page shows
SAME = 0.0005  # nats; less is not shown by three digits
Titled = tuple[str, list[str], list[list[Any]], str]


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MANY


def read_checked(run: Path, name: str, manifest: Mapping[str, Any], holds: Any, right: str) -> Any:
    """A JSON file of a run for which `holds`; `right` says what it must have. Raises: UserError if it is damaged."""
    found = read_json(read_file(run, name, manifest), run / name)
    try:
        if holds(found):
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{run / name}: damaged ({right})")


def read_tokens(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `language_texts.token_weights` gave, if the run weighs tokens. Raises: UserError if it is damaged."""

    def row(group: Any, kind: Any, token: Any, count: Any, weight: Any) -> bool:
        return _text(group) and kind in ("most", "least") and _text(token) and type(count) is int and _share(weight)

    def document(given: Any) -> bool:
        pairs = given["tokens"]
        spelt = _rows(pairs) and all(_text(token) and _share(share) for token, share in pairs)
        return type(given["number"]) is int and _text(given["group"]) and spelt

    def holds(found: Any) -> bool:
        rows, documents = found["tokens"], found["documents"]
        return _rows(rows) and all(row(*r) for r in rows) and _rows(documents) and all(map(document, documents))

    if not (run / TOKENS).is_file():
        return None
    right = "no rows of group, most or least, token, count and weight, and documents"
    return dict(read_checked(run, TOKENS, manifest, holds, right))


def read_completions(run: Path, manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Rows of prompt, group, head and text; none if the run has no completions. Raises: UserError if it is damaged."""
    keys = ("prompt", "group", "head", "text")

    def holds(found: Any) -> bool:
        return _rows(found) and all(isinstance(r, dict) and all(_text(r[key]) for key in keys) for r in found)

    if not (run / COMPLETIONS).is_file():
        return []
    found = read_checked(run, COMPLETIONS, manifest, holds, f"no rows of {', '.join(keys)}")
    return [{key: row[key] for key in keys} for row in found]


def token_table(found: Mapping[str, Any]) -> Titled:
    """The most and the least routed tokens, as in GR table 3; a space is shown as `␣`."""
    rows = [
        [group, kind, _visible(token), count, float(weight)] for group, kind, token, count, weight in found["tokens"]
    ]
    note = "How often a token is in the labelled documents of its group, and its mean weight there: 0 is fully routed, "
    note += "1 not at all. ␣ is a space."
    return "The most and the least routed tokens", ["group", "routed", "token", "count", "weight"], rows, note


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "↵")


def coloured_documents(found: Mapping[str, Any]) -> list[Coloured]:
    """A few documents of each group, each token with how much of it is routed."""
    return [
        (f"Document {given['number']}, {given['group']}", [(token, share) for token, share in given["tokens"]])
        for given in found["documents"]
    ]


def side_by_side(columns: Mapping[str, Sequence[Mapping[str, str]]]) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of completions: one row for each prompt's first, second, … completion, a cell by column."""
    cells: dict[tuple[str, str, int], dict[str, str]] = {}
    for column, rows in columns.items():
        seen: dict[tuple[str, str], int] = {}
        for row in rows:
            key = row["group"], row["prompt"]
            seen[key] = seen.get(key, -1) + 1
            cells.setdefault((*key, seen[key]), {})[column] = row["text"]
    table = [[group, prompt, *(own.get(column, "") for column in columns)] for (group, prompt, _), own in cells.items()]
    return ["group", "prompt", *columns], table


def completion_table(rows: Sequence[Mapping[str, str]]) -> Titled:
    """A run's completions: a row for each prompt, a column for each stage, or whatever else its heads are."""
    heads = dict.fromkeys(row["head"] for row in rows)
    columns, table = side_by_side({head: [row for row in rows if row["head"] == head] for head in heads})
    note = "All stages draw with the same random numbers; what differs is the model."
    return "Completions", columns, table, note


def final_stage(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """The completions of the last stage that there is: fine-tuned, else ablated, else trained, else the last head's.

    Of several ablations, each by itself, none is the last.
    """
    heads = list(dict.fromkeys(row["head"] for row in rows))
    known = [head for stage in STAGES for head in heads if head == stage or head.startswith(f"{stage}, ")]
    plain = [head for head in known if head in STAGES] or known or heads
    return [row for row in rows if row["head"] == plain[-1]]


def _forgotten(config: Any) -> str | None:
    """The group that a run is to forget: the one that it relearns, else the first that has routes."""
    relearn, routing = (config.get(key) if isinstance(config, dict) else None for key in ("relearn", "routing"))
    if isinstance(relearn, dict):
        return str(relearn.get("group"))
    routes = routing.get("routes") if isinstance(routing, dict) else None
    return str(next(iter(routes))) if isinstance(routes, dict) and routes else None


def verdict(rows: Sequence[Mapping[str, Any]], config: Any) -> list[str]:
    """What a language model's final rows say, in words (the measures of GR section 4.2.2).

    Unlearning is the rise of the forgotten group's loss after the steps that follow the training, robust unlearning
    what is left of it after relearning, the cost the rise of the other groups' loss. Nothing without such steps.
    """
    losses: dict[tuple[str, str], float] = {}
    for row in rows:
        if row["metric"] == "cross_entropy":
            losses.setdefault((row["group"], row["head"]), row["value"])
    forgotten = _forgotten(config)
    after = [head for head in STAGES[1:] if (forgotten, head) in losses]
    if not after or (forgotten, STAGES[0]) not in losses:
        return []
    done = " and ".join(DONE[head] for head in after)
    assert forgotten is not None  # it has losses
    began, ended = losses[forgotten, STAGES[0]], losses[forgotten, after[-1]]
    word = "Unlearning" if ended - began > SAME else "No unlearning"
    lines = [f"{word}: after {done} the loss on {forgotten} {_moved(began, ended)}."]
    relearned = [head for group, head in losses if group == forgotten and head.startswith(RELEARNED)]
    if relearned:
        most = max(relearned, key=lambda head: (len(head), head))
        lines.append(_robust(began, ended, losses[forgotten, most], most.removeprefix(RELEARNED), forgotten))
    for group in dict.fromkeys(group for group, _ in losses):
        if group != forgotten and {(group, STAGES[0]), (group, after[-1])} <= losses.keys():
            change = _moved(losses[group, STAGES[0]], losses[group, after[-1]])
            lines.append(f"Cost: after {done} the loss on {group} {change}.")
    return lines


def _moved(before: float, after: float) -> str:
    change = after - before
    if not math.isfinite(change):
        return f"is {after}"
    if abs(change) <= SAME:
        return f"stayed at {after:.3f} nats per token"
    return f"{'rose' if change > 0 else 'fell'} by {abs(change):.3f} nats per token, from {before:.3f} to {after:.3f}"


def _robust(began: float, ended: float, relearned: float, documents: str, group: str) -> str:
    left = relearned - began
    said = f"relearning from {documents} documents brings the loss on {group} to {relearned:.3f} at the lowest"
    if left <= SAME:
        return f"No robust unlearning: {said}, {abs(left):.3f} below the trained model's."
    share = f", {left / (ended - began):.0%} of the rise" if ended - began > SAME else ""
    return f"Robust unlearning: {said}, {left:.3f} above the trained model's{share}."
