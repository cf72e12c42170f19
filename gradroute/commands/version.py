"""`--version` of every command: what a bug report needs."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from gradroute.running.exit_status import guarded

OPTION = "--version"


def version_text() -> str:
    """Return the versions, the commit, the system, and the device and precision that `auto` takes here."""
    from gradroute.training.devices import pick_device, pick_precision  # imported late: torch takes seconds
    from gradroute.training.environment import environment

    device = pick_device("auto")
    found = environment(device, pick_precision("auto", device))
    packages, hardware = found["packages"], found["hardware"]
    commit = f", commit {found['git_commit']}" if found["git_commit"] else ""
    lines = [f"gradroute {packages.pop('gradroute', '(not installed)')}{commit}"]
    lines += [f"python {found['python']}, {found['platform']}"]
    lines += [", ".join(f"{name} {version}" for name, version in packages.items())]
    lines += [f"device {device}, precision {found['precision']}, threads {hardware['threads']}"]
    lines += [", ".join(f"{name} {value}" for name, value in hardware.items() if name != "threads")]
    lines += [", ".join(f"{name}={value}" for name, value in found["settings"].items())]
    return "\n".join(filter(None, lines))


def answered(arguments: list[str]) -> None:
    """If the arguments ask for the version, print it and end the process."""
    if OPTION in arguments:
        sys.exit(guarded(lambda: print(version_text())))


class ShowVersion(argparse.Action):
    """The option for commands that use argparse; it needs no other arguments."""

    def __init__(self, option_strings: Sequence[str], dest: str) -> None:
        super().__init__(option_strings, dest, nargs=0, help="print what a bug report needs")

    def __call__(self, *args: Any) -> None:
        """Print the version and end the process."""
        answered([OPTION])
