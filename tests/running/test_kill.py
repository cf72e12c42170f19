"""Runs killed at random moments and gone on with: in the end they leave, to the bit, what they would have left."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
from forked import fork
from robust import Tally
from small_images import FILES, small

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.run_reader import read_manifest
from gradroute.running.runner import execute

MINUTES = [0.0, 0.0005, 5.0]  # after every update, so that a kill is mostly inside of writing; every few; only at steps
AGAIN = 0.3  # share of the cases in which the run that goes on is killed as well
SECONDS = 120


def work(config: Config, folder: Path | None) -> None:
    """What a process does: a run from its beginning, or one that was killed."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    (outcome,) = execute([config], folder=folder)
    if isinstance(outcome, Exception):
        raise outcome


def killed(config: Config, folder: Path | None, seconds: float) -> None:
    """Begin or go on, and be killed after some seconds, unless it is done by then."""
    process = fork(work, config, folder)
    process.start()
    process.join(seconds)
    if process.exitcode is None:
        os.kill(process.pid, signal.SIGKILL)
    process.join()


def the_run(config: Config) -> Path | None:
    """The run's folder, if the process came to make one."""
    runs = sorted(path.parent for path in (Path(config.output_dir) / config.name).glob("*/manifest.json"))
    assert len(runs) <= 1
    return runs[0] if runs else None


def newest_is_whole(run: Path) -> str:
    """Say what is wrong if the last checkpoint that has its name is not whole: then more than one would be lost."""
    names = sorted(path.name for path in (run / "checkpoints").glob("[0-9]*"))
    try:
        found = checkpoints.newest(run)
    except UserError as error:
        return str(error)
    last = f"checkpoints/{names[-1]}" if names else None
    return "" if (found.name if found else None) == last else f"{last} is not whole"


def one_case(config: Config, reference: Path, chosen: random.Random, seconds: float) -> str:
    """Kill a run, go on with it, and say how it ended."""
    killed(config, None, chosen.uniform(0, seconds))
    kills = 1 + (chosen.random() < AGAIN)
    for number in range(kills):
        run = the_run(config)
        if run and read_manifest(run)["state"] == "finished":
            break
        if run and (wrong := newest_is_whole(run)):
            return wrong
        last = number == kills - 1
        killed(config, run, SECONDS if last else chosen.uniform(0, seconds))
    run = the_run(config)
    if run is None or read_manifest(run)["state"] != "finished":
        return "not finished"
    if left := [path.name for path in run.rglob("*") if path.name.startswith(".") or path.name == "checkpoints"]:
        return f"left behind: {left}"
    differ = [name for name in FILES if (run / name).read_bytes() != (reference / name).read_bytes()]
    return f"not to the bit: {differ}" if differ else "correct"


def run(number: int, folder: Path, seed: int = 0) -> Tally:
    """Kill `number` runs, one after the other, below `folder`."""
    chosen, tally = random.Random(seed), Tally()
    whole = small(f"output_dir={folder / 'whole'}")
    killed(whole, None, SECONDS)  # the first one also fills the caches
    shutil.rmtree(folder / "whole")
    began = time.monotonic()
    killed(whole, None, SECONDS)
    seconds = time.monotonic() - began
    reference = the_run(whole)
    assert reference is not None and read_manifest(reference)["state"] == "finished"
    for case in range(number):
        minutes = MINUTES[case % len(MINUTES)]
        config = small(f"output_dir={folder / str(case)}", f"checkpoint.minutes={minutes}")
        tally.add(f"case {case}", one_case(config, reference, chosen, seconds))
        shutil.rmtree(folder / str(case), ignore_errors=True)
    return tally


@pytest.mark.slow
def test_a_run_that_is_killed_ends_as_if_it_had_not_been(tmp_path: Path) -> None:
    tally = run(3, tmp_path)
    assert not tally.wrong and tally.correct == 3, "\n".join(tally.wrong)
