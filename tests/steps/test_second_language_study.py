"""The script `second_language_study.py`: leakage, differences by seed, and runs that are made once."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from scripted import script

from gradroute import UserError

TINY = [
    "trainer.device=cpu", "dataset.stories=160", "dataset.test_stories=30", "dataset.length=48", "model.width=16",
    "model.heads=2", "model.hidden=16", "trainer.tune_steps=1", "trainer.train_limit=160",
    "relearn.documents=[4]",
]  # fmt: skip


@pytest.fixture
def study() -> ModuleType:
    return script("second_language_study")


def test_leakage_is_read_between_filtered_models(study: ModuleType) -> None:
    filtered = {1.0: 8.0, 0.9: 4.0, 0.5: 2.0, 0.0: 1.0}  # forget losses by labelled fraction
    assert study.leakage(9.0, 0.5, filtered) == 0  # above the model that never saw one
    assert study.leakage(2.0, 0.5, filtered) == 1  # what filtering leaves
    assert study.leakage(4.0, 0.5, filtered) == pytest.approx(0.2)
    assert study.leakage(6.0, 0.5, filtered) == pytest.approx(0.1)  # linear between the two nearest
    assert study.leakage(1.0, 0.5, filtered) == 2  # as much as a model that saw all of them


def test_differences_are_paired_by_seed(study: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    found = {}
    for seed, base in ((0, 1.0), (1, 2.0)):
        found[study.plan("control", "", 1.0, seed, [])] = dict.fromkeys(study.KEYS, base)
        found[study.plan("SGTM", "", 0.25, seed, [])] = dict.fromkeys(study.KEYS, base + 0.5)
        for fraction in (1.0, 0.9, 0.25):
            found[study.plan("filtering", "", fraction, seed, [])] = dict.fromkeys(study.KEYS, base + fraction)
    study.print_table(found, 1000)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| SGTM")]
    cells = [cell.strip() for cell in line.split("|")[1:-1]]
    assert cells[:4] == ["SGTM", "25%", "", "2"] and cells[4].startswith("2.000 ±")
    assert cells[7:10] == ["0.500 ± 0.000"] * 3
    between = 0.1 + (0.9 - 0.5) / (0.9 - 0.25) * (0.75 - 0.1)  # of all forget tokens
    assert cells[10].startswith(f"{between / 0.75:.3f} ±") and cells[10].endswith(f"({between * 1000:.0f} tokens)")


@pytest.mark.slow
def test_a_small_study_runs_and_is_reused(
    study: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(study, "ANCHORS", (1.0, 0.75))
    monkeypatch.setattr(study, "RELEARNED", "model_relearned_4")
    arguments = ["--preset", "smoke", "--seeds", "1", "--fractions", "0.5", "--jobs", "1", *TINY]
    arguments += ["relearn.rates=[0.1]", "--results", "numbers.csv"]
    study.main(arguments)
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[0] for line in table[1:]] == [
        "| control", "| ERA, weight -0.75", "| ERA, weight 0", "| ERA, compensated", "| SGTM", "| filtering",
        "| filtering", "| filtering",
    ]  # fmt: skip
    runs = sorted(tmp_path.glob("outputs/second_language_study/*/*/summary.json"))
    study.main(arguments)
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == table
    assert sorted(tmp_path.glob("outputs/second_language_study/*/*/summary.json")) == runs and len(runs) == 8
    shutil.rmtree("outputs")
    study.main([*arguments, "--table", "--plot", "curves.png"])  # from the numbers alone
    assert Path("curves.png").read_bytes()[:4] == b"\x89PNG"
    assert [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")] == table
    study.main(arguments)
    assert not Path("outputs").exists()
    with pytest.raises(UserError, match=r"nothing\.csv: has no run with these overrides"):
        study.main([*arguments[:-1], "nothing.csv", "--table"])
