"""`gradroute-compare PATH…`: compare runs side by side, with seeds grouped; reads run folders, without torch."""

import argparse
import sys
from pathlib import Path

from gradroute.commands.version import OPTION, ShowVersion
from gradroute.comparison.compare import USUAL, compare
from gradroute.running.exit_status import guarded

FORMATS = ("table", "csv", "markdown", "latex")


def main() -> None:
    """Entry point of `gradroute-compare`."""
    parser = argparse.ArgumentParser(prog="gradroute-compare", description=(__doc__ or "").strip())
    parser.add_argument(OPTION, action=ShowVersion)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="a run, a folder with runs in it, or a glob in quotes")
    parser.add_argument("--metric", help=f"metric to show (default: the first of {', '.join(USUAL)} that runs have)")
    parser.add_argument("--where", action="append", default=[], metavar="KEY=VALUE", help="only runs with this setting")
    parser.add_argument("--sort", metavar="COLUMN", help="column of the table to sort by")
    parser.add_argument("--format", choices=FORMATS, default="table")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="also write CSV, Markdown, LaTeX, plots and a page")
    a = parser.parse_args()
    sys.exit(guarded(lambda: compare(a.paths, a.metric, a.where, a.sort, a.format, a.out)))


if __name__ == "__main__":
    main()
