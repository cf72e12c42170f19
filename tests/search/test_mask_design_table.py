"""The script `mask_design_table.py`: which finalists it reads, its marks, and its file of another machine."""

from pathlib import Path

import pytest
from scripted import script

FINALS = """finalist,seed,localization,reconstruction,overrides
handmade,100,0.50,0.10,[]
handmade,101,0.52,0.11,[]
random 3,100,0.55,0.10,[]
random 3,101,0.57,0.11,[]
random 9,100,0.99,0.01,[]
search 4,100,0.80,0.10,[]
search 4,101,0.82,0.12,[]
pilot,100,0.20,0.50,[]
pilot,101,0.22,0.51,[]
"""


def searched(folder: Path, name: str) -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "search.json").write_text("{}")
    (folder / name / "finals.csv").write_text(FINALS)
    (folder / name / "methods.csv").write_text("method,updates\nrandom,1000\ntpe,900\npilot,100\n")


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[list[str]]:
    script("mask_design_table").main(arguments)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_first_finalist_counts_and_marks_need_intervals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(tmp_path, "rare")
    header, localization, reconstruction, names, *verdicts = printed(capsys, str(tmp_path))
    cells = dict(zip(header, localization, strict=True))
    assert cells["hand-made"] == "0.510 ± 0.127"
    assert cells["random search"] == "0.560 ± 0.127"  # its second finalist does not count, and 0.05 is not shown
    assert cells["tpe"] == "**0.810 ± 0.127 +**"  # better than both
    assert cells["pilot"] == "0.210 ± 0.127 −"
    assert cells["unrouted"] == cells["learned"] == ""
    assert cells["updates"] == "random search 1,000, tpe 900, pilot 100"
    cells = dict(zip(header, reconstruction, strict=True))
    assert cells["score"] == "reconstruction (lower is better)"
    assert cells["pilot"].endswith(" −") and "+" not in cells["tpe"]
    assert names == ["method", "compared with", "rare"]
    assert verdicts == [
        ["random search", "hand-made", "not shown"],
        ["tpe", "hand-made", "better"],
        ["tpe", "random search", "better"],
        ["pilot", "hand-made", "worse"],
        ["pilot", "random search", "worse"],
    ]


def test_a_file_of_another_machine_makes_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    searched(tmp_path / "here", "rare")
    there = tmp_path / "there.csv"
    rows = printed(capsys, str(tmp_path / "here"), "--csv", str(there))
    assert printed(capsys, str(there)) == rows
    searched(tmp_path / "now", "split")
    both = printed(capsys, str(there), str(tmp_path / "now"), "--problems", "split", "rare", "classes")
    assert [row[0] for row in both[1:6]] == ["split", "split", "rare", "rare", "classes"]
    assert both[3:5] == rows[1:3] and both[5][1] == "not measured"
