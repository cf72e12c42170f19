"""`gradroute-export RUN --profile core+PART --to FOLDER`: write the model without the parts that are left out.

Our own transformer is loaded by the `model.py` that is written beside it, a Hugging Face model by `transformers`, and
adapters by `peft`. A card, README.md, says what the model was trained on and what was left out.
"""

import argparse
import sys
from pathlib import Path

from gradroute.commands.version import OPTION, ShowVersion
from gradroute.config.compose import use_code_of
from gradroute.running.exit_status import guarded


def main() -> None:
    """Entry point of `gradroute-export`: exit status 0 if the folder was written, 2 for the user's mistakes."""
    parser = argparse.ArgumentParser(prog="gradroute-export", description=(__doc__ or "").strip())
    parser.add_argument(OPTION, action=ShowVersion)
    parser.add_argument("run", type=Path, metavar="RUN", help="a finished run's folder, outputs/<experiment>/<run>")
    parser.add_argument("--profile", required=True, metavar="PROFILE", help="core, or core and parts, such as core+sea")
    parser.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="the folder to write, a new one")
    parser.add_argument("--merge", action="store_true", help="add the adapters of the profile to the weights")
    parser.add_argument("--quantize", type=int, choices=(8, 4), help="write every matrix in so many bits")
    parser.add_argument(
        "--attack", action="store_true", help="with --quantize: say on the card what rounding brings back"
    )
    parser.add_argument("--licence", default="not stated", metavar="TEXT", help="the licence, for the card")
    parser.add_argument("--run-code", action="store_true", help="run the code that the run's configuration names")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="with --run-code: search for code beside DIR")
    arguments = parser.parse_args()

    def write() -> None:
        from gradroute.running.export import Order, export

        if arguments.config_dir is not None:
            use_code_of(arguments.config_dir)
        own = {name: getattr(arguments, name) for name in ("profile", "to", "merge", "quantize", "licence", "attack")}
        export(arguments.run, Order(**own), arguments.run_code)
        print(f"{arguments.to}: profile {arguments.profile} of {arguments.run}")

    sys.exit(guarded(write))


if __name__ == "__main__":
    main()
