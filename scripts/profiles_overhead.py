"""Measure what several access profiles in one batch cost: forward passes with one profile and with mixed ones in turns.

The model is that of `experiment=profiles`: 4 layers of width 128 with four modules of 64 units beside each MLP of 512.
A batch computes every module that one of its rows uses, so that mixed rows are compared with a single profile of the
same modules, and beside it with profiles of fewer. The overhead is the median of the rounds' ratios of processor time,
minus one.
"""

import argparse
import datetime
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from watch_overhead import passes

from gradroute.models.beside import CORE, Profiles
from gradroute.models.transformer import build_transformer
from gradroute.records.provenance import hardware

NAMES = ("sea", "farm", "town", "castle")
VOCABULARY, LENGTH = 1176, 128
SINGLE = "all modules"  # the profile that the others are compared with


def rows_of(batch: int) -> dict[str, list[str]]:
    """Return each kind of batch: the profile of every row."""
    everything = "+".join((CORE, *NAMES))
    mixed = [CORE, *(f"{CORE}+{name}" for name in NAMES), everything]
    found = {SINGLE: [everything] * batch, "mixed": [mixed[n % len(mixed)] for n in range(batch)]}
    return found | {"one module": [f"{CORE}+{NAMES[0]}"] * batch, "core alone": [CORE] * batch}


def main() -> None:
    """Print the overhead for each batch, and write it with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.manual_seed(0)
    model = build_transformer(VOCABULARY, LENGTH, tied=False, modules=dict.fromkeys(NAMES, 64)).eval()
    profiles, rows = Profiles(model), []
    for batch in (8, 32):
        tokens = torch.randint(0, VOCABULARY, (batch, LENGTH))
        kinds: dict[str, Callable[[], None]] = {}
        for name, own in rows_of(batch).items():

            def run(own: list[str] = own, tokens: torch.Tensor = tokens) -> None:
                with torch.no_grad(), profiles.of(own):
                    model(tokens)

            kinds[name] = run
        found = passes(kinds, given.rounds)
        for name, seconds in found.items():
            ratios = [a / b for a, b in zip(seconds, found[SINGLE], strict=True)]
            low, middle, high = (ratio - 1 for ratio in statistics.quantiles(ratios, n=4))
            rows.append({"batch": batch, "rows": name, "overhead": middle, "quartiles": [low, high]})
            print(f"batch {batch:2d}, {name:11s} overhead {middle:+.1%} (quartiles {low:+.1%}, {high:+.1%})")
    if given.json:
        about = {"date": str(datetime.date.today()), "rounds": given.rounds, "threads": torch.get_num_threads()}
        given.json.write_text(json.dumps({**about, "hardware": hardware(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
