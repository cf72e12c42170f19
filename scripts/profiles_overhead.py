"""Measure what several access profiles in one batch cost: forward passes with one profile and with mixed ones in turns.

The model is that of `experiment=profiles`: 4 layers of width 128 with four modules of 64 units beside each MLP of 512.
A batch computes every module that one of its rows uses, so that mixed rows are compared with a single profile of the
same modules, and beside it with profiles of fewer. The overhead is the median of the rounds' ratios of processor time,
minus one, with its 95 % interval.
"""

from collections.abc import Callable

import torch
from watch_overhead import arguments, overhead, passes, write

from gradroute.models.beside import CORE, Profiles
from gradroute.models.transformer import build_transformer
from gradroute.running.exit_status import guarded

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
    given = arguments(__doc__)
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
            low, middle, high = overhead(seconds, found[SINGLE])
            rows.append({"batch": batch, "rows": name, "overhead": middle, "interval": [low, high]})
            print(f"batch {batch:2d}, {name:11s} overhead {middle:+.1%} ({low:+.1%} to {high:+.1%})")
    write(given, rows)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
