"""The table of a pretrained model: what counts as unlearned, and differences to the control of the same seed."""

import sys
from pathlib import Path

import pytest
from scripted import script

HEADS = {  # losses of forget and retain after each step
    "stories_era": {"model": (2.0, 2.5), "model_ablated": (9.0, 9.0), "model_finetuned": (3.0, 2.6),
                    "model_relearned_16": (2.2, 2.7)},
    "stories_control": {"model": (1.9, 2.4), "model_ablated": (8.0, 8.0), "model_finetuned": (2.0, 2.5),
                        "model_relearned_4": (9.9, 9.9), "model_relearned_16": (1.8, 2.4)},
    "stories_filtering": {"model": (2.1, 2.4), "model_relearned_16": (2.0, 2.4)},
}  # fmt: skip


def test_what_is_unlearned_is_compared_with_the_control(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["experiment,seed,head,region,group,metric,value"]
    for name, heads in HEADS.items():
        for seed in (0, 1) if name != "stories_filtering" else (1,):
            for head, losses in heads.items():
                for group, loss in zip(("forget", "retain"), losses, strict=True):
                    rows.append(f"{name},{seed},{head},all,{group},cross_entropy,{loss + seed / 10}")
    (tmp_path / "numbers.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.setattr(sys, "argv", ["pretrained_table.py", str(tmp_path / "numbers.csv")])
    script("pretrained_table").main()
    era, control, filtering = (line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    assert era[:2] == ["ERA", "2"] and [cell.split(" ±")[0] for cell in era[2:]] == [
        "2.050", "3.050", "2.250", "2.550", "2.650", "2.750", "1.000", "0.400", "0.100",
    ]  # fmt: skip
    assert control[:2] == ["control", "2"] and len(control) == 2 + 6  # no difference to itself
    assert filtering[:2] == ["data filtering", "1"] and filtering[8:] == ["0.100", "0.200", "-0.100"]
