"""Steps of many runs that are made in several processes."""

import os
import sys
from functools import partial
from pathlib import Path

import pytest
from apart import lost, refused, written
from small_images import small

from gradroute.config.schema import Config
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
@pytest.mark.rendered
def test_plots_of_a_stack_are_those_of_runs_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def made(folder: Path) -> list[Path]:
        def one(seed: int) -> Config:
            return small(f"output_dir={folder}", f"seed={seed}", "stack=2", "steps=[train,evaluate,report]")

        runs = execute([one(seed) for seed in range(2)])
        assert all(isinstance(run, Path) for run in runs), runs
        return [run for run in runs if isinstance(run, Path)]

    monkeypatch.setattr(processes, "LEAST", 2)
    monkeypatch.setattr(processes, "processors", lambda: 1)
    alone = made(tmp_path / "alone")
    monkeypatch.setattr(processes, "processors", lambda: 2)
    drawn: list[object] = []
    monkeypatch.setattr(report, "draw", lambda *given: drawn.append(given))
    together = made(tmp_path / "together")
    assert not drawn  # here
    for one, other in zip(alone, together, strict=True):
        files = read_manifest(one)["files"]
        plots = [name for name in files if name.endswith(".png")]
        assert plots and files.keys() == read_manifest(other)["files"].keys()
        assert all((one / name).read_bytes() == (other / name).read_bytes() for name in plots)


def test_the_reports_process_needs_no_torch() -> None:
    code = "import sys, gradroute.reporting.report; sys.exit('torch' in sys.modules)"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0
