"""Sweeps by launchers: the same runs as the serial sweep's, one index, and what the machine lost tried once more."""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from gradroute.commands.run import main
from gradroute.config.schema import Config
from gradroute.errors import MachineError, UserError
from gradroute.running.jobs import Index, Job
from gradroute.running.plan import Plan
from gradroute.training import devices

Command = Callable[..., "subprocess.CompletedProcess[str]"]
SMALL = ["trainer=smoke", "trainer.train_limit=128", "trainer.test_limit=64", "trainer.batch_size=64",
         "model.hidden=[32]", "steps=[train,evaluate]", "trainer.device=cpu"]  # fmt: skip
FOUR = ["-m", "seed=0,1", "routing=mnist_halves,none", *SMALL]


def metrics(cwd: Path) -> dict[str, bytes]:
    """Every run's metrics, by the configuration and the seed that its folder is named after."""
    return {
        run.parent.name.split("_", 2)[2]: run.read_bytes()
        for run in cwd.glob("outputs/mnist_split/*/metrics.csv")
    }  # fmt: skip


def table(cwd: Path) -> list[dict[str, str]]:
    (path,) = cwd.glob("outputs/sweeps/*/jobs.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def serial(forked: Command, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the four runs, one after the other."""
    cwd = tmp_path_factory.mktemp("serial")
    result = forked("gradroute-run", *FOUR, cwd=cwd)
    assert result.returncode == 0, result.stderr
    return cwd


@pytest.mark.slow
def test_a_serial_sweep_has_an_index_too(serial: Path) -> None:
    rows = table(serial)
    assert [row["job"] for row in rows] == [str(number) for number in range(4)]
    assert {row["state"] for row in rows} == {"finished"} and all(float(row["seconds"]) > 0 for row in rows)
    assert all(row["headline"].startswith("mse ") for row in rows)
    given = [
        f"seed={seed} routing={routing} {' '.join(SMALL)}" for seed in (0, 1) for routing in ("mnist_halves", "none")
    ]
    assert [row["overrides"] for row in rows] == given


@pytest.mark.slow
def test_processes_make_the_runs_that_one_makes(serial: Path, command: Command, tmp_path: Path) -> None:
    result = command("gradroute-run", *FOUR, "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert metrics(tmp_path) == metrics(serial) and len(metrics(tmp_path)) == 4
    assert [row["state"] for row in table(tmp_path)] == ["finished"] * 4
    (sweep,) = tmp_path.glob("outputs/sweeps/*")
    assert len(json.loads((sweep / "runs.json").read_text())["runs"]) == 4


DIES = """
import os, signal
from pathlib import Path

def low(images, labels):
    here = Path(__file__).parent
    if not (here / "died").exists():
        (here / "died").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return labels < 5
"""


@pytest.mark.slow
def test_a_job_whose_process_is_lost_is_made_once_more_and_the_others_go_on(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dies.py").write_text(DIES)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(":")]))
    rule = ["+routing.groups.digits_0_4.predicate=dies:low", "routing.groups.digits_0_4.labels=[]"]
    parallel = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    result = command("gradroute-run", "-m", "seed=0,1", "trainer.lr=0.001,-1", *SMALL, *rule, *parallel, cwd=tmp_path)
    assert result.returncode == 2 and "retry: seed=" in result.stderr, result.stderr
    rows = table(tmp_path)
    assert [row["state"] for row in rows] == ["finished", "failed"] * 2
    assert all("trainer.lr=-1" in row["error"] for row in rows if row["state"] == "failed")
    assert result.stderr.count("failed: ") == 2 and "Traceback" not in result.stderr.partition("retry: ")[2]


def test_what_the_machine_had_no_memory_for_is_made_once_more_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[list[Any]] = []

    def execute(configs: Sequence[Config], reuse: bool = False, folder: Path | None = None) -> list[Path | Exception]:
        asked.append([(config.seed, config.stack) for config in configs])
        if len(configs) > 1:
            return [MachineError("out of memory"), UserError("wrong"), MachineError("out of memory")]
        return [MachineError("out of memory")] if configs[0].seed else [tmp_path]

    monkeypatch.setattr("gradroute.running.runner.execute", execute)
    configs = [Config(seed=seed, stack=8) for seed in range(3)]
    plan = Plan(tmp_path, [Job([f"seed={config.seed}"], [config]) for config in configs])
    plan.execute()
    assert asked == [[(0, 8), (1, 8), (2, 8)], [(0, 1)], [(2, 1)]]
    assert [type(outcome) for job in plan.jobs for outcome in job.outcomes][1:] == [UserError, MachineError]
    assert plan.jobs[0].outcomes == [tmp_path]


def test_an_index_knows_what_is_settled(tmp_path: Path) -> None:
    index, none = Index(tmp_path), list[Path | Exception]()
    cases: list[tuple[str, list[Path | Exception]]] = [
        ("finished", none), ("failed", [UserError("a")]), ("failed", [MachineError("b")]), ("running", none),
    ]  # fmt: skip
    for number, (state, outcomes) in enumerate(cases):
        index.note(Job(["x"], outcomes=outcomes, number=number), state)
    assert [entry["job"] for entry in index.lost()] == [2, 3]
    assert "its process was lost" in str(index.jobs()[3].outcomes[-1])


def test_an_index_reads_what_has_changed_and_no_settled_job_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, job, read, text = Index(tmp_path), Job(["x"]), list[Path](), Path.read_text

    def noted(path: Path) -> str:
        read.append(path)
        return text(path)

    monkeypatch.setattr(Path, "read_text", noted)
    for state in ("running", "interrupted", "finished"):
        index.note(job, state)
        assert [entry["state"] for entry in index.read()] == [state] == [index.read()[0]["state"]]
    assert len(read) == 2 + 2 + 1
    os.utime(index.folder / "000000.json", ns=(0, 0))  # as written by another sweep
    assert index.read()[0]["state"] == "finished" and len(read) == 6


def test_processes_of_a_sweep_have_a_gpu_each_while_there_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    taken = []
    for _ in range(2):
        monkeypatch.setattr(devices, "_OWN", [])
        os.environ["CUDA_VISIBLE_DEVICES"] = "3,5"
        devices.own_gpu(tmp_path)
        taken.append(os.environ["CUDA_VISIBLE_DEVICES"])
    assert taken == ["3", "5"]
    monkeypatch.setattr(devices, "_OWN", [])
    os.environ["CUDA_VISIBLE_DEVICES"] = "3,5"
    devices.own_gpu(tmp_path)
    assert os.environ["CUDA_VISIBLE_DEVICES"] in ("3", "5")


@pytest.mark.parametrize(
    ("launcher", "package", "says"),
    [
        ("submitit_slurm", None, "this machine has no Slurm"),
        ("submitit_local", "hydra_submitit_launcher", "pip install 'gradroute[slurm]'"),
        ("ray", "hydra_ray_launcher", "pip install 'gradroute[ray]'"),
        ("job_lib", None, "job_lib"),
    ],
)
def test_a_launcher_that_cannot_be_is_one_line_and_status_2(
    launcher: str, package: str | None, says: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    if package and importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{package}"):
        pytest.skip(f"{package} is installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["gradroute-run", "-m", "seed=0,1", *SMALL, f"hydra/launcher={launcher}"])
    with pytest.raises(SystemExit) as end:
        main()
    said = capsys.readouterr().err
    assert end.value.code == 2 and says in said and len(said.strip().splitlines()) == 1
