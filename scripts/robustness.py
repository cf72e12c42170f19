"""Run the tests' robustness cases at full count: kills, damage, generated configurations, load, hostile folders.

python scripts/robustness.py                                  everything; about half an hour on two cores
python scripts/robustness.py --only corruption --count 50     one part, with another count

Prints a line for each part: cases tried, how many ended right, were refused in one clear line, or were lost or wrong.
The lost or wrong cases follow; with any, the exit status is 1.
"""

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.extend(str(Path(__file__).parent.parent / "tests" / part) for part in (".", "config", "records", "running"))

import test_config_fuzz
import test_corruption
import test_hostile_folder
import test_kill
import test_load
from robust import Tally

from gradroute.running.exit_status import guarded

Part = Callable[[int, Path], Tally]


def _smoke(folder: Path) -> Path:
    """Make a finished smoke run in `folder` and return its path."""
    tally = test_load.run(1, folder / "sound", [])
    if tally.wrong:
        raise SystemExit(f"the smoke run itself failed: {tally.wrong}")
    (manifest,) = (folder / "sound").glob("outputs/*/*/manifest.json")
    return manifest.parent


# by name: the full count of a part, and a function that tries so many cases in a folder of their own
PARTS: dict[str, tuple[int, Part]] = {
    "kill": (100, test_kill.run),
    "corruption": (500, lambda count, folder: test_corruption.run(count, _smoke(folder), folder)),
    "corruption of an interrupted run": (100, test_corruption.run_interrupted),
    "configurations": (2000, lambda count, folder: test_config_fuzz.run(count)),
    "command_line": (100, test_config_fuzz.run_by_command),
    "load": (16, lambda count, folder: test_load.run(count, folder, [])),
    "hostile": (
        len(test_hostile_folder.FOLDERS),
        lambda count, folder: test_hostile_folder.run(_smoke(folder), folder / "read", test_hostile_folder.FOLDERS),
    ),
}


def main() -> None:
    """Run the chosen parts and print one table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=list(PARTS), help="a part; may be given several times")
    parser.add_argument("--count", type=int, help="cases of each part, instead of the full count")
    arguments = parser.parse_args()
    if arguments.count and "hostile" in (arguments.only or PARTS):
        parser.error("--count: hostile has a fixed list of folders; name other parts with --only")
    wrong: list[str] = []
    print("| part | tried | right | refused clearly | lost or wrong |\n|---|---|---|---|---|", flush=True)
    for name in arguments.only or PARTS:
        full, part = PARTS[name]
        with tempfile.TemporaryDirectory() as folder:
            os.environ["GRADROUTE_DATA"] = str(Path(folder) / "cache")
            tally = part(arguments.count or full, Path(folder))
        print(f"| {name} | {tally.tried} | {tally.correct} | {tally.refused} | {len(tally.wrong)} |", flush=True)
        wrong += [f"{name}: {line}" for line in tally.wrong]
    print(*wrong, sep="\n", end="\n" if wrong else "")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
