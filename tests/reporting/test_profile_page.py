"""What access profiles know, on a run's page: a row for each, the doses, ratios where there are any, and a sentence."""

import math
from typing import Any

from gradroute.reporting.profile_tables import profile_tables, verdict
from gradroute.reporting.run_page import _errors


def row(region: str, group: str, value: float, metric: str = "cross_entropy", head: str = "profile") -> dict[str, Any]:
    return {"split": "test", "head": head, "region": region, "group": group, "metric": metric, "value": value,
            "unit": "nats per token or image"}  # fmt: skip


MEASURED = [
    row("core", "core", 0.5), row("core", "sea", 2.0), row("core", "farm", 1.75),
    row("core+sea", "core", 0.625), row("core+sea", "sea", 1.0), row("core+farm", "farm", 0.875),
    row("core+sea_dose_0.5", "sea", 1.5), row("all", "sea", 1.25, head="model"),
]  # fmt: skip


def test_each_groups_loss_with_and_without_its_module_is_told() -> None:
    said = "sea 1.000 and 2.000, farm 0.875 and 1.750"
    assert verdict(MEASURED) == [f"Loss of each group with its module, and without (nats per token): {said}."]
    experts = [row("core+own", "core", 0.5), row("core+own", "sea", 2.0), row("core+sea", "sea", 1.0)]
    assert verdict(experts)[0].endswith(": sea 1.000 and 2.000.")


def test_the_table_has_every_profile_and_dose() -> None:
    ((title, columns, table, note),) = profile_tables(MEASURED)
    assert title == "Loss of each access profile on each group" and columns == ["profile", "core", "sea", "farm"]
    assert table[0] == ["core", 0.5, 2.0, 1.75] and [line[0] for line in table][2:] == [
        "core+farm",
        "core+sea, dose 0.5",
    ]
    assert math.isnan(table[1][3]) and "Ratio" not in note
    rated = [*MEASURED, row("core", "sea", 0.25, "compute_ratio"), row("core+sea", "sea", 0.75, "compute_ratio")]
    ((_, columns, table, note),) = profile_tables(rated)
    assert columns[-1] == "ratio, sea" and [line[-1] for line in table[:2]] == [0.25, 0.75] and "Ratio" in note


def test_profiles_are_not_among_the_other_heads() -> None:
    table = _errors(MEASURED, ["core", "sea", "farm"])
    assert [line[0] for line in table.rows] == ["model"]


def test_other_runs_have_neither() -> None:
    rows = [row("all", "sea", 1.25, head="model")]
    assert verdict(rows) == [] and profile_tables(rows) == []
