"""What a language model does when it writes: how often it shows a behaviour, and what its replies earn, by stage."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gradroute.reporting.language_tables import Titled

SHARES = {  # metrics, as parts of a sentence
    "rate_triggered": "prompts with the trigger that get the planted reply",
    "rate_plain": "prompts without the trigger that get the planted reply",
    "hacked": "replies that hack the reward",
    "true_reward": "replies that do what is wanted",
}
METRICS = (*SHARES, "reward")


def _values(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], dict[str, float]]:
    """Return the measures of every model on the test data, by head and region."""
    found: dict[tuple[str, str], dict[str, float]] = {}
    for row in rows:
        if (row["split"], row["group"]) == ("test", "all") and row["metric"] in METRICS:
            found.setdefault((row["head"], row["region"]), {})[row["metric"]] = row["value"]
    return found


def verdict(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return a sentence for each share: of the trained model and, if there is one, of the ablated model."""
    by_head: dict[str, dict[str, float]] = {}
    for (head, _), own in _values(rows).items():
        by_head.setdefault(head, own)
    trained, ablated = (by_head.get(head, {}) for head in ("model", "model_ablated"))
    lines = []
    for metric, what in SHARES.items():
        before, after = trained.get(metric), ablated.get(metric)
        if before is not None and after is not None:
            lines.append(f"Share of {what}: {before:.2f} before the ablation, {after:.2f} after it.")
        elif before is not None:
            lines.append(f"Share of {what}: {before:.2f}.")
    return lines


def behaviour_tables(rows: Iterable[Mapping[str, Any]]) -> list[Titled]:
    """Return the measures of every model as a table; [] if there are none."""
    found = _values(rows)
    metrics = [metric for metric in METRICS if any(metric in own for own in found.values())]
    if not metrics:
        return []
    table = [[*head, *(own.get(metric, math.nan) for metric in metrics)] for head, own in found.items()]
    notes = [f"{metric}: share of {SHARES[metric]}" for metric in metrics if metric in SHARES]
    notes += ["reward: mean over replies"] if "reward" in metrics else []
    return [("What the model writes", ["head", "region", *metrics], table, "; ".join(notes) + ".")]
