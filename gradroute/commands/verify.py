"""`gradroute-verify RUN…`: check finished runs' files and ledgers, and recompute their metrics from the weights.

`--replay` also makes parts of the training again, so that a folder whose parts come from different trainings is found.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from gradroute.commands.version import OPTION, ShowVersion
from gradroute.config.compose import use_code_of
from gradroute.running.exit_status import guarded
from gradroute.running.verify import Request, verify

SIGNALLED = 128  # exit statuses from here on: interrupted, or nobody reads the output


def windows(text: str) -> int | str:
    """Return a number of windows from 0 on, or `all`. Raises: ArgumentTypeError."""
    if text != "all" and not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}': must be a number of windows, such as 3, or all")
    return text if text == "all" else int(text)


def main() -> None:
    """Entry point of `gradroute-verify`: exit status 0 if all claims hold, 1 if one does not, 2 if a RUN is no run."""
    parser = argparse.ArgumentParser(prog="gradroute-verify", description=(__doc__ or "").strip())
    parser.add_argument(OPTION, action=ShowVersion)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, outputs/<experiment>/<run>")
    parser.add_argument("--run-code", action="store_true", help="run the code that the run's configuration names")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="with --run-code: search for code beside DIR")
    parser.add_argument(
        "--replay", type=windows, default=0, metavar="N|all",
        help="make the first window of updates and N others, drawn at random, or all again, and compare",
    )  # fmt: skip
    parser.add_argument("--sign", type=Path, metavar="KEY", help="sign the manifest with an SSH key if all claims hold")
    parser.add_argument(
        "--signers", type=Path, metavar="FILE",
        help="check that one of these signed the manifest; lines of NAME KEY, ssh-keygen's allowed signers",
    )  # fmt: skip
    arguments = parser.parse_args()
    request = Request(arguments.run_code, arguments.replay, arguments.signers, arguments.sign)
    held: list[bool] = []

    def check(run: Path) -> None:
        if arguments.config_dir is not None:
            use_code_of(arguments.config_dir)
        held.append(verify(run, request))

    worst = 0
    for run in arguments.runs:
        status = guarded(partial(check, run))
        if status >= SIGNALLED:
            sys.exit(status)
        worst = max(worst, status)
    sys.exit(worst or (0 if all(held) else 1))


if __name__ == "__main__":
    main()
