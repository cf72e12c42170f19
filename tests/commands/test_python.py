"""Runs from Python: made as the command line makes them, and looked at in a notebook."""

import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from robust import reseal

import gradroute
from gradroute import UserError
from gradroute.records.metrics import COLUMNS, LEDGER_COLUMNS, final_rows
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics

SMALL = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[32]", "trainer.device=cpu"]  # fmt: skip


def test_the_package_is_a_program(tmp_path: Path) -> None:
    def called(*arguments: str) -> "subprocess.CompletedProcess[str]":
        line = [sys.executable, "-m", "gradroute", *arguments]
        return subprocess.run(line, cwd=tmp_path, capture_output=True, text=True)

    shown = called("--help")
    assert shown.returncode == 0 and "experiment=mnist_split" in shown.stdout and shown.stderr == ""
    script = Path(sys.executable).parent / "gradroute-run"
    assert shown.stdout == subprocess.run([script, "--help"], cwd=tmp_path, capture_output=True, text=True).stdout
    mistaken = called("sede=1")
    assert mistaken.returncode == 2 and mistaken.stderr == "error: unknown key 'sede'; did you mean seed or seeds?\n"
    assert list(tmp_path.iterdir()) == []


def test_a_run_has_everything_that_its_folder_has(small: Path) -> None:
    run = gradroute.open_run(small)
    assert isinstance(run, gradroute.FinishedRun) and run.path == small and repr(run) == f"FinishedRun('{small}')"
    assert run.config["name"] == "mnist_split" and run.config["model"]["hidden"] == [32]
    assert tuple(run.metrics.columns) == COLUMNS and tuple(run.ledger.columns) == LEDGER_COLUMNS
    pd.testing.assert_frame_equal(run.metrics, pd.DataFrame(read_metrics(small)))
    assert set(run.ledger["region"]) >= {"top", "bottom"} and run.ledger["from_step"].min() == 0
    groups = {"digits_0_4", "digits_5_9", "all"}
    assert set(run.summary["group"]) == groups and {"head", "region", "metric", "unit", "value"} < set(run.summary)
    final = pd.DataFrame(final_rows(read_metrics(small)))
    expected = final[final["group"].isin(groups)]["value"]
    assert run.summary["value"].tolist() == pytest.approx(expected.tolist(), rel=1e-6)
    assert run.report == small / "report.html" and run.report.is_file()
    assert not run.model.training and set(run.certificates) == {"top", "bottom"}
    loaded = gradroute.load(small)
    images = torch.rand(4, 784) * 2 - 1
    assert torch.equal(run.model(images), loaded.model(images)) and run.model is run.model
    shown = run._repr_html_()
    assert shown.startswith("<table") and "digits_0_4" in shown and "certificate" in shown


def test_it_is_made_as_the_command_line_makes_it(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    sizes = ["trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64", "model.hidden=[32]"]
    run = gradroute.run("experiment=mnist_split", "trainer=smoke", *sizes)
    assert "mean squared error on the test images" in capsys.readouterr().out
    assert run.path.parent == Path("outputs/mnist_split") and run.manifest["state"] == "finished"
    config = gradroute.open_run(small).config
    assert run.config == config
    torch.testing.assert_close(run.metrics["value"].tolist(), gradroute.open_run(small).metrics["value"].tolist())


def test_a_quiet_run_prints_nothing_and_may_leave_things_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    sizes = [*SMALL, f"output_dir={tmp_path}", "steps=[train,evaluate]", "checkpoint.keep=none", "ledger.enabled=false"]
    run = gradroute.run(*sizes, quiet=True)
    assert capfd.readouterr() == ("", "")
    assert len(run.summary) > 0
    with pytest.raises(UserError, match="has no report; add report to steps"):
        _ = run.report
    with pytest.raises(UserError, match="kept no weights"):
        _ = run.model
    with pytest.raises(UserError, match=r"ledger\.csv"):
        _ = run.ledger


def test_mistakes_are_raised_and_leave_nothing(tmp_path: Path) -> None:
    for given, says in (
        (["trainer.epochs=0"], "trainer.epochs=0: must be from 1"),
        (["model.widht=8"], "unknown key 'model.widht'"),
        (["trainer.epoch=1"], "unknown key 'trainer.epoch'; did you mean trainer.epochs"),
        (["trainer=quick"], "unknown value of trainer: 'quick'; valid: fast, paper, smoke"),
        (["trainer.lr=[1,"], "trainer.lr=[1,: the value cannot be read"),
        (["dataset.root=/nonexistent"], "is missing"),
        (["seeds=2"], "seeds=2: gradroute.run makes one run; call it once for each seed"),
    ):
        with pytest.raises(UserError) as error:
            gradroute.run(*SMALL, f"output_dir={tmp_path / 'out'}", *given)
        assert says in str(error.value) and "\n" not in str(error.value)
        assert error.value.__suppress_context__ or error.value.__context__ is None
    assert list(tmp_path.iterdir()) == []


CODE = """
def low(images, labels):
    return labels < 5
"""


def test_code_beside_a_folder_of_configurations_is_the_users_own(tmp_path: Path) -> None:
    """It runs for the run that is made; a folder that is opened needs consent."""
    (tmp_path / "lab" / "conf").mkdir(parents=True)
    (tmp_path / "lab" / "lows_and_highs.py").write_text(CODE)
    rule = ["routing.groups.digits_0_4={predicate: 'lows_and_highs:low'}", "steps=[train,evaluate]"]
    run = gradroute.run(*SMALL, *rule, f"output_dir={tmp_path / 'out'}", config_dir=tmp_path / "lab" / "conf")
    assert run.config["routing"]["groups"]["digits_0_4"]["predicate"] == "lows_and_highs:low"
    assert sum(parameter.numel() for parameter in run.model.parameters()) > 0
    assert gradroute.open_run(run.path).config == run.config


def test_what_is_no_finished_run_is_refused(small: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run folder"):
        gradroute.open_run(tmp_path)
    unfinished = shutil.copytree(small, tmp_path / "unfinished")
    text = (unfinished / "manifest.json").read_text()
    (unfinished / "manifest.json").write_text(text.replace('"state": "finished"', '"state": "interrupted"'))
    reseal(unfinished)
    assert read_manifest(unfinished)["state"] == "interrupted"
    with pytest.raises(UserError, match=r"the run is not finished \(state: interrupted\)"):
        gradroute.open_run(unfinished)
    damaged = shutil.copytree(small, tmp_path / "damaged")
    for name in ("metrics.csv", "ledger.csv", "summary.json", "config.yaml"):
        with (damaged / name).open("a") as file:
            file.write("\n")
    run = gradroute.open_run(damaged)
    for name in ("config", "metrics", "ledger", "summary", "model"):
        with pytest.raises(UserError, match=r"damaged \(its SHA-256 differs from the manifest's\)"):
            getattr(run, name)
