"""Processes forked from one that has imported everything: in a new one, importing torch takes longer than a small run.

What is given to them has to be picklable, and code that they are given has to lie in a module.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import torch

_forks: Any = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["gradroute.commands.run", "gradroute.running.runner", "gradroute.reporting.plots"])


def fork(function: Callable[..., object], *arguments: object) -> Any:
    """A process, not yet started, that calls a function of a module."""
    return _forks.Process(target=function, args=arguments)


def main(name: str, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], out: Path) -> None:
    """In a process of its own: be the console script `name`, and leave what it prints in `out`."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    for number in (1, 2):
        os.dup2(os.open(out / str(number), os.O_WRONLY), number)
    torch.set_num_threads(int(environment.get("OMP_NUM_THREADS", torch.get_num_threads())))
    sys.argv = [name, *arguments]
    (script,) = entry_points(group="console_scripts", name=name)
    sys.exit(script.load()())


class Forked:
    """The console script `name`, at work in a fork; its exit status and what it printed are there after `wait`."""

    def __init__(self, name: str, *arguments: str, cwd: Path, environment: Mapping[str, str]) -> None:
        self.arguments = [name, *arguments]
        self._out = tempfile.TemporaryDirectory()
        self._printed = [Path(self._out.name) / number for number in ("1", "2")]
        for path in self._printed:
            path.touch()
        self.process = fork(main, name, arguments, cwd, dict(environment), Path(self._out.name))
        self.process.start()

    def wait(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait for its end, or end it and raise TimeoutExpired."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.arguments, seconds)
        printed = [path.read_text() for path in self._printed]
        self._out.cleanup()
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *printed)
