"""A run trained by several processes: what one makes of the same batches in parts, to the bit; and what is refused."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from forked import Forked
from small_language import SMALL, config

from gradroute.config.compose import configuration
from gradroute.config.identity import one_by_seed
from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest
from gradroute.tasks.image_checks import indivisible
from gradroute.tasks.language import LanguageModelling
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


def test_a_mistake_ends_all_processes_and_leaves_nothing(tmp_path: Path) -> None:
    line = command(tmp_path / "out", *era("dataset=text", "dataset.files=nowhere"))
    result = subprocess.run(line, capture_output=True, text=True, timeout=120)
    told = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode and told and all("nowhere" in line for line in told), result.stderr
    assert not (tmp_path / "out").exists()
