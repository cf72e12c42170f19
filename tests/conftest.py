"""Shared fixtures. Nothing here or in any test needs a network, a GPU or an account.

What is skipped, and why:
- `test_causal_lm.py`, `test_pretrained.py`, `test_document_sets.py`, and Parquet and `datasets` in
  `test_text_documents.py`, without the packages of `gradroute[hf]`;
- `test_launchers.py`, by launcher, without the packages of `gradroute[slurm]` and `gradroute[ray]`; and what
  `test_jobs.py` says of a package that is missing, where it is there;
- one test each of `test_text_documents.py` and `test_token_rules.py` without the sample of real stories in
  `../shared/data`, which is not in the repository.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # two processes of two threads each take twice the time on two cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

Result = subprocess.CompletedProcess[str]


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own, so that the user's is never touched."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(autouse=True)
def _use_cache(data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADROUTE_DATA", str(data_cache))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(scope="session")
def command(data_cache: Path) -> Callable[..., Result]:
    """Run one of the installed console scripts in a folder."""

    def call(name: str, *arguments: str, cwd: Path) -> Result:
        script = Path(sys.executable).parent / name
        environment = {**os.environ, "GRADROUTE_DATA": str(data_cache)}
        environment.pop("HYDRA_FULL_ERROR", None)
        return subprocess.run(
            [script, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
        )

    return call


@pytest.fixture(scope="session")
def smoke(command: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one smoke run of the main job, made by the real command line."""
    cwd = tmp_path_factory.mktemp("smoke")
    result = command("gradroute-run", "experiment=mnist_split", "trainer=smoke", cwd=cwd)
    assert result.returncode == 0, result.stderr
    (run,) = (cwd / "outputs" / "mnist_split").iterdir()
    return run


@pytest.fixture(scope="session")
def small(command: Callable[..., Result], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with every step and file of the smoke run, but next to no sizes: to be read many times."""
    cwd = tmp_path_factory.mktemp("small")
    sizes = ["trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64", "model.hidden=[32]"]
    result = command("gradroute-run", "experiment=mnist_split", "trainer=smoke", *sizes, cwd=cwd)
    assert result.returncode == 0, result.stderr
    (run,) = (cwd / "outputs" / "mnist_split").iterdir()
    return run
