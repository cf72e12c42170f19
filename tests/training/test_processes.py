"""A run trained by several processes: what one makes of the same batches in parts, to the bit; and what is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from forked import Forked, fork
from small_language import SMALL, config

from gradroute.config.compose import configuration
from gradroute.config.identity import one_by_seed
from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest
from gradroute.running.lockstep import explained
from gradroute.tasks.image_checks import indivisible
from gradroute.tasks.language import LanguageModelling
from gradroute.training import devices, distributed
from gradroute.training.distributed import require_one

WRITTEN = ("model.safetensors", "ledger.csv", "metrics.csv", "summary.json")
STEPS = ["steps=[train,ablate,evaluate]", "finetune=null", "relearn=null", "completions=null"]


def command(folder: Path, *overrides: str) -> list[str]:
    """The command line of a run by two processes."""
    started = ["torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    return [sys.executable, "-m", *started, "gradroute.commands.run", f"output_dir={folder}", *overrides]


def era(*overrides: str) -> list[str]:
    small = [given for given in SMALL if not given.startswith(("relearn", "completions"))]
    return ["experiment=stories_era", *small, *STEPS, *overrides]


def run(processes: int, *arguments: str) -> None:
    """Run a command in forks with the environment that torchrun gives its processes. All must end well."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    given = {**os.environ, "OMP_NUM_THREADS": "1"}  # which torchrun sets, too; two would round differently
    if processes > 1:
        given |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
        given |= {"TORCHELASTIC_RUN_ID": "tests"}
    started = [
        Forked("gradroute-run", *arguments, cwd=Path.cwd(), environment={**given, "RANK": rank, "LOCAL_RANK": rank})
        for rank in map(str, range(processes))
    ]
    for end in [process.wait(300) for process in started]:
        assert end.returncode == 0, end.stderr


def equal(one: Path, other: Path) -> None:
    (one,), (other,) = one.glob("*/*/"), other.glob("*/*/")
    for name in WRITTEN:
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    assert read_manifest(other)["state"] == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["stories_era", "class_split"])
def test_two_processes_make_what_one_makes_in_two_parts(tmp_path: Path, experiment: str) -> None:
    """Also of a last batch of one row, in which the second process has no part."""
    if experiment == "stories_era":
        rows = LanguageModelling(config(tmp_path, experiment)).points
        given = era(f"trainer.batch_size={next(size for size in range(4, rows) if rows % size == 1)}")
    else:
        sizes = ["trainer.train_limit=193", "trainer.test_limit=64", "trainer.batch_size=64", "model.width=16"]
        given = ["experiment=class_split", "trainer=smoke", "losses.correlation=0", STEPS[0], *sizes]
    run(2, f"output_dir={tmp_path / 'two'}", *given, "trainer.epochs=2")
    run(1, f"output_dir={tmp_path / 'one'}", *given, "trainer.epochs=2", "trainer.accumulate=2")
    equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_a_signal_ends_all_processes_and_the_run_goes_on_to_the_bit(tmp_path: Path) -> None:
    given = era("trainer.epochs=4", "checkpoint.minutes=0", "routing.labelled_fraction=0.5")
    run(1, f"output_dir={tmp_path / 'whole'}", *given, "trainer.accumulate=2")
    line = command(tmp_path / "cut", *given)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob("cut/*/*/checkpoints/000004")):
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    (folder,) = tmp_path.glob("cut/*/*/")
    assert read_manifest(folder)["state"] == "interrupted"
    run(2, f"resume={folder}")
    equal(tmp_path / "whole", tmp_path / "cut")
    run(2, f"resume={folder}")  # finished: no process waits for another


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["trainer=smoke"], "torchrun: losses.correlation needs the whole batch"),
        (era("seeds=2"), "torchrun: 2 runs were requested"),
        (["experiment=stories_era/sgtm", "trainer=smoke"], "parameters are frozen in one process only"),
    ],
)
def test_what_several_processes_cannot_train_is_refused(given: list[str], message: str) -> None:
    configs = one_by_seed(configuration(given))
    with pytest.raises(UserError, match=message):
        require_one(configs, indivisible(configs[0]))


@pytest.mark.slow
def test_a_mistake_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    line = command(tmp_path / "out", *era("dataset=text", "dataset.files=nowhere"))
    result = subprocess.run(line, capture_output=True, text=True, timeout=120)
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode and told and all("nowhere" in line for line in told), result.stderr
    assert not (tmp_path / "out").exists()


def _waits(rank: int, port: str, folder: str, goes: bool) -> None:
    """Rank 0 waits for rank 1, which ends its process, or does something else for longer than the limit."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "TORCHELASTIC_RUN_ID": "tests"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    distributed.TIMEOUT = timedelta(seconds=2)
    with distributed.joined():
        if rank:
            time.sleep(0 if goes else 4)
            os._exit(0)
        try:
            distributed._flags([0])
        except RuntimeError as error:
            told = explained(error, Path("RUN"), configuration(["trainer=smoke"]), 1)
            Path(folder, "told").write_text(f"{type(told).__name__}: {told}")
        os._exit(0)


@pytest.mark.parametrize("goes", [False, True], ids=["silent", "gone"])
def test_no_process_waits_without_an_end(tmp_path: Path, goes: bool) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [fork(_waits, rank, port, str(tmp_path), goes) for rank in range(2)]
    for process in processes:
        process.start()
    processes[0].join(60)
    told = (tmp_path / "told").read_text()
    assert told.startswith("MachineError: torchrun: another process is gone, or has not answered for ")
    assert told.endswith("resume the run with resume=RUN") and "\n" not in told
    processes[1].join(60)


def test_processes_share_gpus_if_there_are_too_few(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [distributed.backend(processes, 2) for processes in (1, 2, 3)] == ["cpu:gloo,cuda:nccl"] * 2 + ["gloo"]
    assert distributed.backend(2, 0) == "gloo"
    asked: list[str] = []
    monkeypatch.setattr(distributed, "size", lambda: 3)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "empty", lambda size, device: asked.append(device))
    for rank in range(3):
        monkeypatch.setenv("LOCAL_RANK", str(rank))
        devices.pick_device("auto")
    assert asked == ["cuda:0", "cuda:1", "cuda:0"]
