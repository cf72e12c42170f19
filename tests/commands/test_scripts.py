"""The scripts in `scripts/`: a mistake is reported as by the commands, in one line with exit status 2."""

import runpy
import sys
from pathlib import Path

import pytest
from scripted import SCRIPTS

TABLES = sorted(path.stem for path in SCRIPTS.glob("*_table.py"))
STUDIES = ("oversight", "second_language_study", "unlearning_sweep")


def status(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> object:
    """Return the exit status of a script that is run by its user."""
    monkeypatch.syspath_prepend(SCRIPTS)  # where scripts find each other
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPTS / f"{name}.py"), run_name="__main__")
    return ended.value.code


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("place", ["nowhere", "nowhere.csv"])
def test_a_table_of_a_place_that_does_not_exist(
    name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(monkeypatch, name, place) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith(f"error: {place}: ") and printed.err.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.slow  # each starts a process that imports torch
@pytest.mark.parametrize("name", STUDIES)
def test_a_study_of_a_setting_that_does_not_exist(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(monkeypatch, name, "--seeds", "1", "trainer.epoch=1") == 2
    assert "unknown key 'trainer.epoch'; did you mean trainer.epochs" in capsys.readouterr().err
