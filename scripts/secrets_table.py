"""Print what an attacker gets of each method of `scripts/secrets.sh`, in Markdown, from finished runs.

usage: python scripts/secrets_table.py RUNS… [--csv FILE]
"""

import argparse
import csv
from pathlib import Path

from gradroute.comparison.compare import varying
from gradroute.comparison.language import settings_of
from gradroute.comparison.runs import KEYS, distinct, find_runs, read_run
from gradroute.comparison.secrets import attacker_table, copies_table
from gradroute.running.exit_status import guarded


def main() -> None:
    """Print both tables; with `--csv`, write every number that the runs measured of secrets, and their losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--csv", type=Path)
    given = parser.parse_args()
    finished = [read for read in map(read_run, find_runs(given.runs)) if read.left_out is None]
    reads, _ = distinct(finished)
    settings = settings_of(reads, varying(reads))
    for title, columns, table, note in (attacker_table(settings), copies_table(settings)):
        print(f"**{title}**\n\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
        for row in table:
            print(f"| {' | '.join(map(str, row))} |")
        print(f"\n{note}\n")
    if given.csv:
        with given.csv.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["experiment", "seed", *KEYS, "value"])
            for read in sorted(reads, key=lambda read: (read.settings["name"], read.settings["seed"])):
                for measured in read.rows:
                    named = [*(measured[key] for key in KEYS), f"{measured['value']:.6g}"]
                    writer.writerow([read.settings["name"], read.settings["seed"], *named])


if __name__ == "__main__":
    raise SystemExit(guarded(main))
