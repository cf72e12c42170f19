"""The script `oversight.py`: the table, the gate's means, and runs that are made once."""

import shutil
from pathlib import Path
from types import ModuleType

import pytest
from scripted import script

from gradroute import UserError

TABLE = """arm,oversight,seed,overrides,step,policy,served,gate_seen_diamond,gate_seen_ghost,gate_unseen,processor,date
routing,0.05,0,,40,0.1,0.2,0.5,0.5,0.5,a,2026-01-01
routing,0.05,0,,80,0.0,0.4,0.9,0.1,0.3,a,2026-01-01
routing,0.05,1,,80,0.0,0.6,0.7,0.3,0.3,a,2026-01-01
early_stopping,0.05,0,,40,0.5,0.5,nan,nan,nan,a,2026-01-01
early_stopping,0.05,0,,80,0.1,0.5,nan,nan,nan,a,2026-01-01
routing,0.05,0,trainer=paper,80,0.9,0.9,0.9,0.1,0.3,a,2026-01-01
"""


@pytest.fixture
def study() -> ModuleType:
    return script("oversight")


def test_the_table_has_the_last_values_of_runs_with_the_same_overrides(
    study: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "kept.csv").write_text(TABLE)
    study.main(["--table", "--out", str(tmp_path), "--results", str(tmp_path / "kept.csv")])
    said = capsys.readouterr().out.splitlines()
    assert any(line.startswith("| routing, steered | 0.500 ±") and line.endswith("(2) |") for line in said)
    assert "| naive | 0.100 (1) |" in said and "| naive, stopped by the seen return | 0.500 (1) |" in said
    assert any(line.startswith("gate, routing, p = 0.05: seen_diamond 0.800 ±") for line in said)
    assert "naive, p = 0.05: highest 0.500 at updates 40" in said
    assert (tmp_path / "oversight.png").is_file()


def test_a_study_without_runs_is_refused(study: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"^--results .*curves.csv: has no run with these overrides"):
        study.main(["--table", "--out", str(tmp_path)])


@pytest.mark.slow
def test_runs_that_the_file_has_are_not_made_again(study: ModuleType, tmp_path: Path) -> None:
    given = ["--arms", "oracle", "--seeds", "1", "--jobs", "1", "--out", str(tmp_path), "trainer=smoke"]
    study.main(given)
    kept, (run,) = (tmp_path / "curves.csv").read_text(), tmp_path.glob("oversight_oracle/*")
    assert ",trainer=smoke,2," in kept
    shutil.rmtree(run)
    study.main(given)
    assert (tmp_path / "curves.csv").read_text() == kept and not run.exists()
