"""Steps of many runs that are made in several processes."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
from apart import lost, refused, written
from sketch import PNG
from small_images import small

from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest
from gradroute.reporting import report
from gradroute.running import processes
from gradroute.running.runner import execute


def test_calls_are_made_elsewhere_and_their_errors_come_back(tmp_path: Path) -> None:
    calls = {"a": partial(written, tmp_path / "a"), "b": partial(refused, "no"), "c": partial(written, tmp_path / "c")}
    found = processes.errors(calls)
    assert list(found) == ["b"] and isinstance(found["b"], UserError) and str(found["b"]) == "no"
    assert all(int((tmp_path / name).read_text()) != os.getpid() for name in "ac")


def test_a_call_whose_process_is_lost_is_made_here(tmp_path: Path) -> None:
    calls = {"a": partial(lost, tmp_path / "a", os.getpid()), "b": partial(written, tmp_path / "b")}
    assert processes.errors(calls) == {}
    assert int((tmp_path / "a").read_text()) == os.getpid() and (tmp_path / "b").exists()


@pytest.mark.slow
def test_the_plots_of_a_stack_are_drawn_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(folder: Path) -> list[Path]:
        given = (f"output_dir={folder}", "stack=2", "steps=[train,evaluate,report]")
        runs = execute([small(*given, f"seed={seed}") for seed in range(2)])
        assert all(isinstance(run, Path) for run in runs), runs
        return [run for run in runs if isinstance(run, Path)]

    monkeypatch.setattr(processes, "LEAST", 2)
    monkeypatch.setattr(processes, "cores", lambda: 1)
    alone = made(tmp_path / "alone")
    monkeypatch.setattr(processes, "cores", lambda: 2)
    monkeypatch.setattr(report, "draw", lambda *given: pytest.fail("drawn here"))
    for one, other in zip(alone, made(tmp_path / "together"), strict=True):
        manifest = read_manifest(other)
        assert manifest["state"] == "finished" and manifest["files"].keys() == read_manifest(one)["files"].keys()
        plots = list((other / "plots").glob("*.png"))
        assert plots and all(path.stat().st_size > len(PNG) for path in plots)  # the processes sketch none
        assert (other / "report.html").stat().st_size > (one / "report.html").stat().st_size


def test_the_reports_process_needs_no_torch() -> None:
    code = "import sys, gradroute.reporting.report; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
