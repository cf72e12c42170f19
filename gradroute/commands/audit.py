"""`gradroute-audit RUN…`: is what a group taught gone from an ablated model, or only hidden?

It audits finished runs, or reads their audits, pools them over seeds, prints one line of JSON, and compares the
verdicts with stored ones.
"""

import argparse
import sys
from pathlib import Path

import yaml

from gradroute.commands.version import OPTION, ShowVersion
from gradroute.config.compose import use_code_of
from gradroute.errors import UserError
from gradroute.running.exit_status import guarded


def options_of(given: list[str], group: str | None) -> dict[str, object]:
    """Return keys of the step `audit` and their values from `KEY=VALUE`. Raises: UserError."""
    found: dict[str, object] = {} if group is None else {"group": group}
    for text in given:
        key, mark, value = text.partition("=")
        if not mark or not key.isidentifier():
            raise UserError(f"--set {text}: give KEY=VALUE, such as samples=5 or examples=[4,16]")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: {value} cannot be read as YAML") from None
    return found


def main() -> None:
    """Entry point of `gradroute-audit`: exit status 0; 1 if a verdict got worse; 2 for the user's mistake."""
    parser = argparse.ArgumentParser(prog="gradroute-audit", description=(__doc__ or "").strip())
    parser.add_argument(OPTION, action=ShowVersion)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="finished runs of one experiment, by seed")
    parser.add_argument("--group", help="whose knowledge is audited; known of a run with one routed group")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="an argument of the step audit; may be repeated"
    )
    parser.add_argument("--output-dir", type=Path, metavar="DIR", help="where new audits go; default: beside the run")
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="stored verdicts: an audit.json, or such a line")
    parser.add_argument("--against", type=Path, metavar="RUN", help="a run whose verdicts count as the stored ones")
    parser.add_argument("--run-code", action="store_true", help="run the code that a run's configuration names")
    parser.add_argument("--config-dir", type=Path, metavar="DIR", help="with --run-code: search for code beside DIR")
    arguments = parser.parse_args()
    worse: list[str] = []

    def work() -> None:
        from gradroute.running.audits import Request, as_line, audit

        if arguments.config_dir is not None:
            use_code_of(arguments.config_dir)
        options = options_of(arguments.set, arguments.group)
        places = (arguments.output_dir, arguments.baseline, arguments.against)
        line, sentences = audit(Request(arguments.runs, options, *places, arguments.run_code))
        for said in sentences:
            print(said, file=sys.stderr)
        print(as_line(line))
        worse.extend(line["worse"])
        if worse:
            print(f"worse than stored: {', '.join(worse)}", file=sys.stderr)

    status = guarded(work)
    sys.exit(status or (1 if worse else 0))


if __name__ == "__main__":
    main()
