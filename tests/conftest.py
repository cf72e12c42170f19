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

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from forked import Forked

Result = subprocess.CompletedProcess[str]
Command = Callable[..., Result]


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """A folder of all processes of this test run; `make` fills it in the first one that asks."""
    base = factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    with FileLock(f"{folder}.lock"):
        if not Path(f"{folder}.made").exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            Path(f"{folder}.made").touch()
    return folder


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder of the tests' own, so that the user's is never touched."""
    return shared(tmp_path_factory, "data", lambda folder: None)


@pytest.fixture(autouse=True)
def _use_cache(data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADROUTE_DATA", str(data_cache))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


def _environment(data_cache: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"GRADROUTE_DATA": str(data_cache)}


@pytest.fixture(scope="session")
def command(data_cache: Path) -> Command:
    """Run one of the installed console scripts in a folder."""

    def call(name: str, *arguments: str, cwd: Path) -> Result:
        line = [str(Path(sys.executable).parent / name), *arguments]
        return subprocess.run(line, cwd=cwd, env=_environment(data_cache), capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def forked(data_cache: Path) -> Command:
    """The same in a fork, which has imported everything already."""

    def call(name: str, *arguments: str, cwd: Path) -> Result:
        return Forked(name, *arguments, cwd=cwd, environment=_environment(data_cache)).wait(300)

    return call


def _mnist_split(factory: pytest.TempPathFactory, name: str, run: Command, *sizes: str) -> Path:
    def make(cwd: Path) -> None:
        result = run("gradroute-run", "experiment=mnist_split", "trainer=smoke", *sizes, cwd=cwd)
        assert result.returncode == 0, result.stderr

    (made,) = (shared(factory, name, make) / "outputs" / "mnist_split").iterdir()
    return made


@pytest.fixture(scope="session")
def smoke(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one smoke run of the main job, made by the real command line."""
    return _mnist_split(tmp_path_factory, "smoke", command)


@pytest.fixture(scope="session")
def small(forked: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with every step and file of the smoke run, but next to no sizes: to be read many times."""
    sizes = ["trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64", "model.hidden=[32]"]
    return _mnist_split(tmp_path_factory, "small", forked, *sizes)
