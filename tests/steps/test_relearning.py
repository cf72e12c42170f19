"""Relearning at several rates: the attacker's best one counts, as if only it had been tried."""

from pathlib import Path
from typing import Any

import pytest
from small_language import config, goes_on_to_the_bit
from torch import nn

from gradroute.records.metrics import RELEARNED
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.tasks.language import LanguageModelling

STEPS = "steps=[train,ablate,relearn,evaluate]"
GIVEN = ("finetune=null", STEPS, "relearn.documents=[3]", "relearn.samples=2", "trainer.tune_steps=4")


@pytest.mark.slow
def test_the_best_rate_gives_the_numbers_that_it_gives_alone(tmp_path: Path) -> None:
    losses = {}
    for name, rates in {"low": "[0.01]", "high": "[1.0]", "both": "[0.01,1.0]"}.items():
        (run,) = execute([config(tmp_path / name, "stories_era", *GIVEN, f"relearn.rates={rates}")])
        assert isinstance(run, Path), run
        rows = read_metrics(run, read_manifest(run))
        mine = [r for r in rows if r["head"] == "model_relearned_3"]
        losses[name] = {
            region: min(
                r["value"] for r in mine
                if (r["split"], r["group"], r["region"]) == ("validation", "forget", region)
            )
            for region in {r["region"] for r in mine if r["split"] == "validation"}
        }  # fmt: skip
        test = {r["group"]: r["value"] for r in mine if (r["split"], r["metric"]) == ("test", "cross_entropy")}
        losses[name]["test"] = test["forget"]
        (rate,) = [r["value"] for r in mine if r["metric"] == "best_rate"]
        losses[name]["rate"] = rate
    both = losses["both"]
    for name in ("low", "high"):
        for sample in (0, 1):
            region = f"sample_{sample}_rate_{losses[name]['rate']:g}"
            assert both[region] == losses[name][region]
    better = [
        "low" if both[f"sample_{s}_rate_0.01"] < both[f"sample_{s}_rate_1"] else "high" for s in (0, 1)
    ]  # fmt: skip
    if len(set(better)) == 1:
        assert both["test"] == losses[better[0]]["test"] and both["rate"] == losses[better[0]]["rate"]
    assert both["rate"] == sum(losses[name]["rate"] for name in better) / 2


@pytest.mark.slow
def test_it_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    goes_on_to_the_bit(tmp_path, monkeypatch, "relearn.rates=[0.1,1.0]", "trainer.tune_steps=2")


def test_the_model_that_every_training_begins_with_is_measured_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = 0
    losses = LanguageModelling.group_losses

    def counted(self: LanguageModelling, model: nn.Module, *of: Any) -> dict[str, float]:
        nonlocal measured
        measured += model is self.made.get("relearning")
        return losses(self, model, *of)

    monkeypatch.setattr(LanguageModelling, "group_losses", counted)
    changes = [*GIVEN, "relearn.documents=[2,3]", "relearn.rates=[0.1,1.0]", "relearn.every=4", "relearn.samples=1"]
    (run,) = execute([config(tmp_path, "stories_era", *changes)])
    assert isinstance(run, Path), run
    starts: dict[str, dict[str, float]] = {}
    for row in read_metrics(run, read_manifest(run)):
        if (row["split"], row["step"]) == ("validation", 0) and row["head"].startswith(RELEARNED):
            starts.setdefault(row["head"] + row["region"], {})[row["group"]] = row["value"]
    first, *others = starts.values()
    assert len(others) == 3 and all(other == first for other in others) and set(first) == {"forget", "retain"}
    assert measured == 1 + 4  # the start, and the end of each training
