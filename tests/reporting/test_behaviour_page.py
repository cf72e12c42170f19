"""What a model writes, on its page: shares before and after the ablation."""

import math
from typing import Any

from gradroute.reporting.behaviour_tables import behaviour_tables, verdict


def row(head: str, region: str, metric: str, value: float, group: str = "all", split: str = "test") -> dict[str, Any]:
    return {"split": split, "head": head, "region": region, "group": group, "metric": metric, "value": value}


HACKED = [
    row("model", "all", "hacked", 0.75), row("model", "all", "true_reward", 0.5), row("model", "all", "reward", 2.5),
    row("model_ablated", "forget", "hacked", 0.25), row("model_ablated", "forget", "true_reward", 0.625),
    row("model_ablated", "forget", "reward", 1.0), row("episodes", "all", "hacked", 0.9, split="train"),
    row("model", "all", "cross_entropy", 2.0, "forget"),
]  # fmt: skip


def test_the_shares_before_and_after_the_ablation_are_told() -> None:
    assert verdict(HACKED) == [
        "Share of replies that hack the reward: 0.75 before the ablation, 0.25 after it.",
        "Share of replies that do what is wanted: 0.50 before the ablation, 0.62 after it.",
    ]
    assert verdict([row("model", "all", "rate_plain", 0.0)]) == [
        "Share of prompts without the trigger that get the planted reply: 0.00."
    ]


def test_the_table_has_a_row_for_every_model_and_a_column_for_every_measure() -> None:
    ((title, columns, table, note),) = behaviour_tables([*HACKED, row("model_finetuned", "all", "hacked", 0.125)])
    assert title == "What the model writes" and columns == ["head", "region", "hacked", "true_reward", "reward"]
    assert table[:2] == [["model", "all", 0.75, 0.5, 2.5], ["model_ablated", "forget", 0.25, 0.625, 1.0]]
    assert table[2][:3] == ["model_finetuned", "all", 0.125] and all(math.isnan(value) for value in table[2][3:])
    assert note.startswith("hacked: share of replies that hack the reward; ") and note.endswith("mean over replies.")


def test_other_runs_have_neither() -> None:
    rows = [row("model", "all", "cross_entropy", 2.0, "forget"), row("model", "all", "secret_bits", 2.0)]
    assert verdict(rows) == [] and behaviour_tables(rows) == []
