"""Measure a language model's training tokens per second: unrouted, routed, and routed with penalties and ledger.

Each kind is measured compiled and not. All have the same model, data, batches and optimizer, and take turns in random
order within every round. Prints the ratios to the unrouted step, of compiled steps to the compiled one, and writes them
as JSON with `--json`. `model=transformer_28m` measures the model of 28 million parameters.

usage: python scripts/language_throughput.py [--pairs 60] [--json FILE] [override ...]
"""

import argparse
import json
import random
import statistics
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from figures import Figure
from routing_overhead import ledger_of, measure
from turns import Step, timed

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.records.provenance import hardware
from gradroute.running.exit_status import guarded
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_objective import NextTokenObjective
from gradroute.training.compiling import compiled
from gradroute.training.devices import computing
from gradroute.training.gradients import Single

COMPILED = " compiled"
KINDS = ("unrouted", "routed", "routed + penalties + ledger")


def kind(config: Config, what: str, opened: ExitStack | None) -> tuple[Step, int]:
    """Return a training step and its number of tokens; compiled if `opened` is given, which closes the compiler."""
    task = LanguageModelling(config)
    model, trainer, partial_labels = task.model, config.trainer, bool((task.labelled == -1).any())
    bare = replace(config.losses, l1={})
    objective = {
        "unrouted": lambda: NextTokenObjective(model, task.names, bare, partial_labels),
        "routed": lambda: NextTokenObjective(model, task.names, bare, partial_labels, task.router),
        "routed + penalties + ledger": task.objective,
    }[what]()
    program = Single(objective, trainer, partial(computing, trainer.precision, task.device), None)
    program.set_rates([trainer.lr / 10])
    ledger = ledger_of(task.router, task.routed)
    order, number = torch.Generator().manual_seed(0), iter(range(10**9))
    if opened is not None and objective.router:
        opened.enter_context(compiled(objective))
    elif opened is not None:  # with another function, since torch looks programs up by function and would mix them up
        objective.program = torch.compile(model.forward, dynamic=False)

    def step() -> None:
        torch.use_deterministic_algorithms(opened is not None and task.device.type == "cpu")
        rows = torch.randint(task.points, (trainer.batch_size,), generator=order).to(task.device)
        now = next(number)
        task.at_step(now)
        if what == KINDS[-1]:
            objective.monitor = ledger.begin(now, task.routed[rows])
        program.gradients([task.batch(rows)])
        program.update()
        if task.device.type == "cuda":
            torch.cuda.synchronize()

    return step, trainer.batch_size * task.data.length


SIZES = {  # by name: overrides; a small batch, so that a step of the larger model takes seconds on a CPU
    "1M": ["experiment=stories_era", "trainer=fast", "trainer.batch_size=16"],
    "28M": ["experiment=stories_era", "model=transformer_28m", "trainer.batch_size=2"],
}
TARGETS = {"routed": 1.03, "routed + penalties + ledger": 1.10}  # to the unrouted step, at most


def language(device: str, rounds: int) -> tuple[list[dict[str, str]], list[Figure]]:
    """Measure the steps of two models, eager and compiled; return a table's rows, and figures with their targets."""
    rows, figures = [], []
    for size, given in SIZES.items():
        config = configuration([*given, f"trainer.device={device}"])
        with ExitStack() as opened:
            made = {what + end: kind(config, what, opened if end else None) for end in ("", COMPILED) for what in KINDS}
            seconds = timed({name: step for name, (step, _) in made.items()}, 5 * rounds, 2, device)
        for name, (_, tokens) in made.items():
            plain = seconds[KINDS[0] + (COMPILED if name.endswith(COMPILED) else "")]
            ratio = Figure(
                f"{size}: {name}, to the unrouted step", [a / b for a, b in zip(seconds[name], plain, strict=True)],
                TARGETS.get(name.removesuffix(COMPILED)), at_most=True,
            )  # fmt: skip
            low, middle, high = (tokens / pick(seconds[name]) for pick in (max, statistics.median, min))
            rows.append({"what": f"{size}: {name}", "tokens per second": f"{middle:.0f} ({low:.0f} to {high:.0f})"})
            if ratio.target is not None:
                figures.append(ratio)
    return rows, figures


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=60)
    parser.add_argument("--json", default=None)
    parser.add_argument("overrides", nargs="*", help="of gradroute-run; experiment=stories_era by default")
    a = parser.parse_args()
    random.seed(0)
    named = any(given.startswith("experiment=") for given in a.overrides)
    given = a.overrides if named else ["experiment=stories_era", *a.overrides]
    config = configuration(given)
    facts: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, **hardware()}
    facts |= {"threads": torch.get_num_threads(), "overrides": given}
    print(facts)
    with ExitStack() as opened:
        steps = {
            what + suffix: kind(config, what, opened if suffix else None) for suffix in ("", COMPILED) for what in KINDS
        }
        found = measure("tokens", {name: step for name, (step, _) in steps.items()}, a.pairs, COMPILED)
    for name, (_, tokens) in steps.items():
        found[name]["tokens_per_second"] = rate = 1e3 * tokens / found[name]["milliseconds"]
        print(f"{name:36} {rate:9.0f} tokens per second, median")
    if a.json:
        with open(a.json, "w") as file:
            json.dump(facts | found, file, indent=2)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
