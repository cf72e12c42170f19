"""Measure what watching a region costs: forward passes of a transformer, watched and not, in turns.

The model is that of `experiment=secrets`: 4 layers of width 128 with 64 added units each, which are watched. Each round
times twenty passes of each kind, in an order that alternates, by the processor's time, so that other work on the
machine counts little; the overhead is the median of the rounds' ratios, minus one, with its
95 % interval.
"""

import argparse
import copy
import datetime
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from gradroute import Region, watch
from gradroute.models.transformer import build_transformer
from gradroute.records.provenance import hardware
from gradroute.running.exit_status import guarded

PASSES = 20  # in a round, so that a watch of one pass in twenty counts one of them
REGION = Region("blocks.*.mlp.act", "512:576")


def passes(kinds: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds of processor time of every round's passes of each kind."""
    found: dict[str, list[float]] = {name: [] for name in kinds}
    for number in range(-2, rounds):  # the first two warm up
        names = list(kinds) if number % 2 else list(kinds)[::-1]
        for name in names:
            began = time.process_time()
            for _ in range(PASSES):
                kinds[name]()
            if number >= 0:
                found[name].append(time.process_time() - began)
    return found


def arguments(description: str | None) -> argparse.Namespace:
    """Return the arguments of the command line: `rounds` and `json`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def overhead(seconds: Sequence[float], base: Sequence[float]) -> tuple[float, float, float]:
    """Return the lower end, the median and the upper end of the rounds' ratios, minus one.

    The ends are those of the median's 95 % interval, two order statistics of the ratios; it supposes no distribution
    (Hahn and Meeker, Statistical Intervals, 1991, section 5.2).
    """
    ratios = sorted(a / b for a, b in zip(seconds, base, strict=True))
    rank = max(int(len(ratios) / 2 - 1.96 * len(ratios) ** 0.5 / 2), 1)  # from the lowest, which has rank 1
    return ratios[rank - 1] - 1, statistics.median(ratios) - 1, ratios[-rank] - 1


def write(given: argparse.Namespace, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with date, threads and hardware, if `--json` is given."""
    if given.json:
        about = {"date": str(datetime.date.today()), "rounds": given.rounds, "threads": torch.get_num_threads()}
        given.json.write_text(json.dumps({**about, "hardware": hardware(), "rows": rows}, indent=1) + "\n")


def main() -> None:
    """Print the overhead for each batch and `every`, and write them with `--json`."""
    given = arguments(__doc__)
    torch.manual_seed(0)
    model = build_transformer(1176, 128, expand=[0, 1, 2, 3], added=64, tied=False).eval()
    rows = []
    for batch in (1, 8):
        tokens = torch.randint(0, 1176, (batch, 128))
        kinds: dict[str, Callable[[], None]] = {}
        for name, every in (("unwatched", 0), ("every pass", 1), ("every 20th", 20)):
            own = copy.deepcopy(model)
            if every:
                watching = watch(own, {"added": REGION}, tokens[:1], every)
                with watching.learning(), torch.no_grad():
                    own(tokens)

            def run(own: torch.nn.Module = own, tokens: torch.Tensor = tokens) -> None:
                with torch.no_grad():
                    own(tokens)

            kinds[name] = run
        found = passes(kinds, given.rounds)
        for name, seconds in found.items():
            low, middle, high = overhead(seconds, found["unwatched"])
            milliseconds = 1e3 * statistics.median(seconds) / PASSES
            rows.append({"batch": batch, "watched": name, "milliseconds": milliseconds, "overhead": middle,
                         "interval": [low, high]})  # fmt: skip
            print(f"batch {batch:2d}, {name:11s} {milliseconds:8.2f} ms a pass, overhead {middle:+.1%} "
                  f"({low:+.1%} to {high:+.1%})")  # fmt: skip
    write(given, rows)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
