"""Read run folders as the commands do, in a process that notes forbidden actions; used by `test_hostile_folder`.

`python reader.py FOLDER…` prints one JSON object: the exit status and output by folder and command; what was executed,
imported or written; and the peak memory beyond that of the imports. Memory is limited while reading.
"""

import contextlib
import io
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot  # noqa: F401  # imported before `watch`
import pandas  # noqa: F401
import rich.console  # noqa: F401
import scipy.special  # noqa: F401
import torchvision.datasets  # noqa: F401
from robust import kept_data

import gradroute
import gradroute.comparison.plots
from gradroute.comparison.compare import compare
from gradroute.data.images.packaged import cache_dir
from gradroute.records.run_reader import read_rerun
from gradroute.reporting.run_data import RunData
from gradroute.reporting.run_page import run_page
from gradroute.running.exit_status import guarded
from gradroute.running.verify import verify

MEMORY = 2 * 2**30  # bytes beyond the imports
EXECUTES = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "pickle.find_class", "socket.connect")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT
noted: list[str] = []


def watch(places: list[Path]) -> None:
    """Note every execution, every import of a module called evil, and every file opened to write outside `places`."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event in EXECUTES or (event == "import" and str(arguments[0]).startswith("evil")):
            noted.append(f"{event} {arguments!r:.100}")
        elif event == "open" and isinstance(arguments[0], str | bytes) and (arguments[2] or 0) & WRITES:
            path = Path(os.fsdecode(arguments[0])).resolve()
            if not any(path.is_relative_to(place) for place in places) and path != Path(os.devnull):
                noted.append(f"wrote {path}")

    sys.addaudithook(note)


def shown(run: gradroute.FinishedRun) -> list[object]:
    """Return what a notebook may ask of a run, except its model, which `load` reads."""
    return [run.config, run.metrics, run.ledger, run.summary, run._repr_html_(), run.report]


def commands(run: Path) -> dict[str, Callable[[], object]]:
    """Return what can be done with an unknown folder, by name."""
    return {
        "compare": lambda: compare([str(run)], out=Path("out") if run.name == "texts" else None),
        "verify": lambda: verify(run),
        "load": lambda: gradroute.load(run),
        "page": lambda: run_page(run),
        "scene": lambda: RunData(run),
        "rerun": lambda: read_rerun(run),
        "resume": lambda: read_rerun(run, ["output_dir"]),
        "open": lambda: shown(gradroute.open_run(run)),
    }


def answer(command: Callable[[], object]) -> dict[str, Any]:
    """Run a command as `guarded` does for the command line; return its status, output and seconds."""
    printed, errors, started = io.StringIO(), io.StringIO(), time.monotonic()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(errors):
        status = guarded(lambda: (command(), None)[1])
    seconds = round(time.monotonic() - started, 1)
    return {"status": status, "out": printed.getvalue(), "err": errors.getvalue(), "seconds": seconds}


def main() -> None:
    """Read every given folder and print the JSON object."""
    runs = [Path(argument) for argument in sys.argv[1:]]
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, taken + MEMORY))
    watch([*(run.resolve() for run in runs), Path("out").resolve(), cache_dir().resolve()])
    with kept_data():
        found = {str(run): {n: answer(c) for n, c in commands(run).items()} for run in runs}
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    print(json.dumps({"found": found, "noted": noted, "peak": peak}))


if __name__ == "__main__":
    main()
