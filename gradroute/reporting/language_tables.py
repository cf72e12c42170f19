"""What a language model's page shows besides errors: sentences, token weights, documents and completions.

All of it is read from a run's folder, which may come from a stranger. A table is a title, columns, rows and a note.
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
LONGEST = 100_000  # most characters of one text
MANY = 10_000  # most rows, or tokens of a document
SAME = 0.0005  # nats; a smaller change rounds to 0.000
APART = 4  # groups whose cost is told in a sentence each
Titled = tuple[str, list[str], list[list[Any]], str]


def _share(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1


def _text(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= LONGEST


def _rows(value: Any) -> bool:
    return isinstance(value, list) and len(value) <= MANY


def read_checked(run: Path, name: str, manifest: Mapping[str, Any], holds: Any, right: str) -> Any:
    """Return a run's JSON file if `holds` accepts its content.

    `right` says in the message what the file lacks. Raises: UserError if it is damaged.
    """
    found = read_json(read_file(run, name, manifest), run / name)
    try:
        if holds(found):
            return found
    except (KeyError, TypeError, ValueError):
        pass
    raise UserError(f"{run / name}: damaged ({right})")


def read_tokens(run: Path, manifest: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what `language_texts.token_weights` gave; None if the file is missing. Raises: UserError if damaged."""

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
    right = "no rows of group, most or least, token, count and weight, or no documents"
    return dict(read_checked(run, TOKENS, manifest, holds, right))


def read_completions(run: Path, manifest: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return rows of prompt, group, head and text; [] if there are no completions. Raises: UserError if damaged."""
    keys = ("prompt", "group", "head", "text")

    def holds(found: Any) -> bool:
        return _rows(found) and all(isinstance(r, dict) and all(_text(r[key]) for key in keys) for r in found)

    if not (run / COMPLETIONS).is_file():
        return []
    found = read_checked(run, COMPLETIONS, manifest, holds, f"no rows of {', '.join(keys)}")
    return [{key: row[key] for key in keys} for row in found]


def token_table(found: Mapping[str, Any]) -> Titled:
    """Return the most and the least routed tokens, as in GR table 3; a space is shown as `␣`."""
    rows = [
        [group, kind, _visible(token), count, float(weight)] for group, kind, token, count, weight in found["tokens"]
    ]
    note = "Count and mean weight of a token in the labelled documents of its group. Weight 0: fully routed; weight 1: "
    note += "not routed. ␣ is a space."
    return "The most and the least routed tokens", ["group", "routed", "token", "count", "weight"], rows, note


def _visible(token: str) -> str:
    return token.replace(" ", "␣").replace("\n", "↵")


def coloured_documents(found: Mapping[str, Any]) -> list[Coloured]:
    """Return a few documents of each group, each token with the share of it that is routed, 0 to 1."""
    return [
        (f"Document {given['number']}, {given['group']}", [(token, share) for token, share in given["tokens"]])
        for given in found["documents"]
    ]


def side_by_side(columns: Mapping[str, Sequence[Mapping[str, str]]]) -> tuple[list[str], list[list[Any]]]:
    """Return the columns and rows of a table: the first, second, … completion of a prompt in a row of its own."""
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
    """Return a run's completions: one row for each completion of a prompt, one column for each head."""
    heads = dict.fromkeys(row["head"] for row in rows)
    columns, table = side_by_side({head: [row for row in rows if row["head"] == head] for head in heads})
    note = "All columns are sampled with the same random numbers; only the model differs."
    return "Completions", columns, table, note


def final_stage(rows: Sequence[Mapping[str, str]]) -> list[Mapping[str, str]]:
    """Return the completions of the run's last stage, in the order of `STAGES`; without stages, of the last head.

    Separate ablations of several regions count only if the run has no other stage.
    """
    heads = list(dict.fromkeys(row["head"] for row in rows))
    known = [head for stage in STAGES for head in heads if head == stage or head.startswith(f"{stage}, ")]
    plain = [head for head in known if head in STAGES] or known or heads
    return [row for row in rows if row["head"] == plain[-1]]


def _forgotten(config: Any) -> str | None:
    """Return the group to forget: the one that the run relearns, else the first that has routes."""
    relearn, routing = (config.get(key) if isinstance(config, dict) else None for key in ("relearn", "routing"))
    if isinstance(relearn, dict):
        return str(relearn.get("group"))
    routes = routing.get("routes") if isinstance(routing, dict) else None
    return str(next(iter(routes))) if isinstance(routes, dict) and routes else None


def verdict(rows: Sequence[Mapping[str, Any]], config: Any) -> list[str]:
    """Return sentences about a language model's final rows, with the measures of GR section 4.2.2.

    Unlearning is the rise of the forgotten group's loss over the steps after training, robust unlearning the part of
    it that is left after relearning, and the cost the rise of the other groups' loss. Without such steps, return [].
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
    moved = {
        group: (losses[group, STAGES[0]], losses[group, after[-1]])
        for group in dict.fromkeys(group for group, _ in losses)
        if group != forgotten and {(group, STAGES[0]), (group, after[-1])} <= losses.keys()
    }
    if len(moved) > APART:
        said = ", ".join(f"{group} {ended - began:+.3f}" for group, (began, ended) in moved.items())
        return [*lines, f"Cost: after {done} the loss changed by (nats per token): {said}."]
    return [*lines, *(f"Cost: after {done} the loss on {group} {_moved(*pair)}." for group, pair in moved.items())]


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
