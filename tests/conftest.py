"""Shared fixtures. Nothing here or in any test needs a network, a GPU or an account.

Skipped tests:
- without the packages of `gradroute[hf]`: `test_adapters.py`, `test_causal_lm.py`, `test_pretrained.py`,
  `test_document_sets.py`, models of other kinds than our own in `test_layer_parts.py`, models in `test_bad_input.py`,
  and the cases for Parquet and `datasets` in `test_text_documents.py`;
- without the package of `gradroute[dp]`, a part of `dev`: `test_private.py`;
- without the package of `gradroute[rl]`, a part of `dev`: the worlds of gymnasium in `test_environments.py`;
- without the packages of `gradroute[slurm]` or `gradroute[ray]`: their launchers in `test_launchers.py`; with them: the
  message about a missing package in `test_jobs.py`;
- without an NVIDIA GPU: those marked `gpu`, all of `test_on_a_gpu.py`;
- without the sample of real stories in `../shared/data`, which is not in the repository: one test each of
  `test_text_documents.py` and `test_token_rules.py`.
"""

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # on two cores, two processes of two threads each take twice as long
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import composing
import forked as forks
import mnist_once
import pytest
import sketch
from filelock import FileLock
from forked import Forked
from matplotlib.figure import Figure

from gradroute.data.images.torchvision import MNIST

composing.quick()  # in all tests, and in their forks (`warm`)

Result = subprocess.CompletedProcess[str]
Command = Callable[..., Result]


def pytest_collection_finish() -> None:
    """Keep the collector of garbage from walking through everything that was imported, and from coming too often."""
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)  # a tenth of the tests' time less than by default


def shared(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Return a folder that all processes of this test run share; the first process that asks fills it with `make`."""
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
    """Return a cache folder for the tests, so that the user's is never touched."""
    return shared(tmp_path_factory, "data", lambda folder: None)


@pytest.fixture(autouse=True)
def _use_cache(data_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRADROUTE_DATA", str(data_cache))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)


@pytest.fixture(autouse=True)
def _read_mnist_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read and hash the packaged MNIST once in a process, but in the tests of reading it."""
    if request.path.parent.name != "data":
        monkeypatch.setattr(MNIST, "tensors", mnist_once.tensors)


@pytest.fixture(autouse=True)
def _leave_disk_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Skip waiting for the disk: what tests write need not outlive a power failure."""
    monkeypatch.setattr(os, "fsync", forks.written)


@pytest.fixture(autouse=True)
def _sketch_plots(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "rendered" not in request.keywords:
        monkeypatch.setattr(Figure, "savefig", sketch.savefig)
        monkeypatch.setattr(Figure, "get_layout_engine", sketch.no_engine)


def _environment(data_cache: Path) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "HYDRA_FULL_ERROR"} | {"GRADROUTE_DATA": str(data_cache)}


@pytest.fixture(scope="session")
def command(data_cache: Path) -> Command:
    """Return a function that runs an installed console script in a folder."""

    def call(name: str, *arguments: str, cwd: Path) -> Result:
        line = [str(Path(sys.executable).parent / name), *arguments]
        return subprocess.run(line, cwd=cwd, env=_environment(data_cache), capture_output=True, text=True, timeout=300)

    return call


@pytest.fixture(scope="session")
def forked(data_cache: Path) -> Command:
    """Return the same function for a fork of a process that has imported everything already."""

    def call(name: str, *arguments: str, cwd: Path, rendered: bool = False) -> Result:
        return Forked(name, *arguments, cwd=cwd, environment=_environment(data_cache), rendered=rendered).wait(300)

    return call


def _mnist_split(factory: pytest.TempPathFactory, name: str, run: Command, *sizes: str) -> Path:
    def make(cwd: Path) -> None:
        result = run("gradroute-run", "experiment=mnist_split", "trainer=smoke", *sizes, cwd=cwd)
        assert result.returncode == 0, result.stderr

    (made,) = (shared(factory, name, make) / "outputs" / "mnist_split").iterdir()
    return made


@pytest.fixture(scope="session")
def smoke(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of one smoke run of the main experiment, made by the real command line."""
    return _mnist_split(tmp_path_factory, "smoke", command)


@pytest.fixture(scope="session")
def small(forked: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a run with all steps and files of the smoke run at tiny sizes: quick to read many times."""
    sizes = ["trainer.train_limit=256", "trainer.test_limit=64", "trainer.batch_size=64", "model.hidden=[32]"]
    return _mnist_split(tmp_path_factory, "small", forked, *sizes)
