"""Fork processes from one that has imported everything: a new one would import torch for longer than a small run takes.

Arguments must be picklable, and functions must be defined in a module.
"""

import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import sketch
import torch
from matplotlib.figure import Figure

_forks: Any = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["warm"])


def fork(function: Callable[..., object], *arguments: object) -> Any:
    """Return a process, not yet started, that calls a function of a module."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # else the server does not find `warm`, and does not say so
    try:
        forkserver.ensure_running()
    finally:
        os.environ.pop("PYTHONPATH")
        if before is not None:
            os.environ["PYTHONPATH"] = before
    return _forks.Process(target=function, args=arguments)


def exit_with_missing() -> None:
    """Exit with the number of modules of `warm`, and itself, that this process has not imported yet."""
    modules: Sequence[str] = getattr(sys.modules.get("warm"), "MODULES", ())
    sys.exit(sum(name not in sys.modules for name in ("warm", *modules)))


def written(fd: object) -> None:
    """Take the place of `os.fsync`, which waits 20 ms or more for a disk; a tiny run writes dozens of files."""


def main(
    name: str, arguments: tuple[str, ...], cwd: Path, environment: Mapping[str, str], out: Path, rendered: bool
) -> None:
    """Act as the console script `name` in this process, and write what it prints to `out`."""
    if not rendered:
        Figure.savefig = sketch.savefig  # type: ignore[assignment]
        Figure.get_layout_engine = sketch.no_engine  # type: ignore[assignment]
    os.fsync = written
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
    """The console script `name`, running in a fork; `wait` returns its exit status and what it printed.

    Its plots are sketched, unless `rendered`.
    """

    def __init__(
        self, name: str, *arguments: str, cwd: Path, environment: Mapping[str, str], rendered: bool = False
    ) -> None:
        self.arguments = [name, *arguments]
        self._out = tempfile.TemporaryDirectory()
        self._printed = [Path(self._out.name) / number for number in ("1", "2")]
        for path in self._printed:
            path.touch()
        self.process = fork(main, name, arguments, cwd, dict(environment), Path(self._out.name), rendered)
        self.process.start()

    def wait(self, seconds: float) -> subprocess.CompletedProcess[str]:
        """Wait until the script ends and return the result. Raises: TimeoutExpired, after killing it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise subprocess.TimeoutExpired(self.arguments, seconds)
        printed = [path.read_text() for path in self._printed]
        self._out.cleanup()
        return subprocess.CompletedProcess(self.arguments, self.process.exitcode, *printed)
