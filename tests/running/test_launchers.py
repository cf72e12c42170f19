"""Sweeps of four jobs by submitit and by Ray, each as one process makes them; skipped without their packages."""

import importlib.util
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

Command = Callable[..., "subprocess.CompletedProcess[str]"]
FOUR = ["-m", "seed=0,1", "routing=mnist_halves,none", "trainer=smoke", "trainer.train_limit=128",
         "trainer.test_limit=64", "trainer.batch_size=64", "model.hidden=[32]", "steps=[train,evaluate]",
         "trainer.device=cpu"]  # fmt: skip
LAUNCHERS = {
    "submitit_local": ("slurm", "hydra_submitit_launcher"),
    "ray": ("ray", "hydra_ray_launcher"),
}


def metrics(cwd: Path) -> dict[str, bytes]:
    """Every run's metrics, by the configuration and the seed that its folder is named after."""
    return {run.parent.name.split("_", 2)[2]: run.read_bytes() for run in cwd.glob("outputs/mnist_split/*/metrics.csv")}


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_a_launcher_makes_the_runs_that_one_process_makes(
    launcher: str, command: Command, forked: Command, tmp_path: Path
) -> None:
    extra, package = LAUNCHERS[launcher]
    if not (importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{package}")):
        pytest.skip(f"needs gradroute[{extra}]")
    found = []
    for name, run, more in (("serial", forked, []), (launcher, command, [f"hydra/launcher={launcher}"])):
        (tmp_path / name).mkdir()
        result = run("gradroute-run", *FOUR, *more, cwd=tmp_path / name)
        assert result.returncode == 0, result.stderr
        found.append(metrics(tmp_path / name))
        (jobs,) = (tmp_path / name).glob("outputs/sweeps/*/jobs.csv")
        assert jobs.read_text().count(",finished,") == 4
    assert found[0] == found[1] and len(found[0]) == 4
