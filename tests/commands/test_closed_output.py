"""Outputs that nobody reads: a closed pipe ends a command quietly, and a closed output is none."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

SMALL = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[32]", "steps=[train,evaluate]", "trainer.device=cpu"]  # fmt: skip
CLOSED_PIPE = 141  # 128 + SIGPIPE, as a shell has it


@pytest.fixture
def environment(data_cache: Path) -> Mapping[str, str]:
    return {**os.environ, "GRADROUTE_DATA": str(data_cache)}


def script(name: str) -> str:
    return str(Path(sys.executable).parent / name)


def into_a_closed_pipe(
    line: list[str], cwd: Path, environment: Mapping[str, str]
) -> "subprocess.CompletedProcess[str]":
    """Run a command whose output is a pipe that nobody reads any more."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(line, cwd=cwd, env=environment, stdout=write, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write)


@pytest.mark.parametrize("name", ["gradroute-run", "gradroute-search"])
def test_help_into_head_is_quiet(name: str, tmp_path: Path, environment: Mapping[str, str]) -> None:
    line = f"{script(name)} --help | head -1; exit ${{PIPESTATUS[0]}}"
    result = subprocess.run(["bash", "-c", line], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode in (0, CLOSED_PIPE) and result.stderr == ""  # 0 if all was written before the pipe closed
    assert result.stdout.count("\n") == 1 and name in result.stdout
    result = into_a_closed_pipe([script(name), "--help"], tmp_path, environment)
    assert (result.returncode, result.stderr) == (CLOSED_PIPE, "")


@pytest.mark.slow
@pytest.mark.parametrize("given", [["gradroute-compare", "--format", "csv"], ["gradroute-verify"]], ids=" ".join)
def test_what_reads_a_run_is_quiet(
    given: list[str], small: Path, tmp_path: Path, environment: Mapping[str, str]
) -> None:
    name, *options = given
    result = into_a_closed_pipe([script(name), str(small), *options], tmp_path, environment)
    assert (result.returncode, result.stderr) == (CLOSED_PIPE, "")


@pytest.mark.slow
@pytest.mark.parametrize("sweep", [[], ["-m", "seed=0,1"]], ids=["run", "sweep"])
def test_a_training_is_quiet_and_counts_as_interrupted(
    sweep: list[str], tmp_path: Path, environment: Mapping[str, str]
) -> None:
    result = into_a_closed_pipe([script("gradroute-run"), *sweep, *SMALL], tmp_path, environment)
    assert (result.returncode, result.stderr) == (CLOSED_PIPE, "")
    manifests = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/mnist_split/*/manifest.json")]
    assert [manifest["state"] for manifest in manifests] == ["interrupted"]


@pytest.mark.slow
@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_closed_output_is_none(closed: str, tmp_path: Path, environment: Mapping[str, str]) -> None:
    line = ["bash", "-c", f'exec "$@" {closed}', "bash", script("gradroute-run"), *SMALL]
    result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
    (manifest,) = tmp_path.glob("outputs/mnist_split/*/manifest.json")
    assert json.loads(manifest.read_text())["state"] == "finished"
    line = ["bash", "-c", f'exec "$@" {closed}', "bash", script("gradroute-compare"), str(manifest.parent)]
    result = subprocess.run(line, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 0 and result.stderr == ""
