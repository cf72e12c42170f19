"""Route words of a family into one dimension, and measure how steering changes the likelihood of held-out relatives.

python scripts/steering_study.py STORIES.txt                            four families, three conditions, five seeds
python scripts/steering_study.py STORIES.txt --family family --seeds 2  one family, two seeds
python scripts/steering_study.py STORIES.txt trainer.epochs=2           overrides of every run
python scripts/steering_study.py STORIES.txt --results FILE.csv         keeps the numbers there, and continues from them
python scripts/steering_study.py STORIES.txt --results FILE.csv --table makes no runs

Everything that could be chosen by its result is fixed here, before a run: the routed words, the held-out relatives, the
placebo words, the levels of KL, the seeds and the measure. The lists are for TinyStories (Eldan and Li 2023).

Conditions: `routed`; `unrouted`, the control, with the same words and no masks; `placebo words`, which routes another
word instead, about as frequent as the routed one. Each run also steers along four random dimensions.

Measure: the mean log-likelihood ratio, steered to unsteered, of the relatives where they stand in the test documents,
minus that of words of their frequency, at strengths with the same mean KL from the unsteered model. Tables give means
over seeds and half-widths of 95 % t-intervals; differences are paired by seed. × is how many times as likely the words
are at any position.

Finished runs are reused and interrupted ones are resumed. Prints Markdown tables of the seeds that have every
condition.
"""

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from kept import Kept, Key, Numbers
from study_runs import Planned, make_and_keep, parsed

from gradroute.config.overrides import literal
from gradroute.records.metrics import final_rows
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.reporting import intervals
from gradroute.running.exit_status import guarded


@dataclass(frozen=True)
class Family:
    """A word to route, relatives that are held out, and a word of the same frequency to route as a placebo."""

    routed: str
    related: str
    placebo: str


FAMILIES = {
    "family": Family("mom", "dad mommy daddy mother father mama mum grandma grandpa sister brother parents", "little"),
    "names": Family("lily", "tim tom ben timmy max sam jack sue lucy mia anna sara", "little"),
    "animals": Family("dog", "bird cat fish rabbit bear frog lion duck mouse cow squirrel monkey", "friend"),
    "colours": Family("red", "blue green yellow white black pink purple orange brown grey", "walked"),
}
LEVELS = (0.01, 0.03, 0.1, 0.3)  # mean KL of the next token, in nats
SEEDS = 5
CONDITIONS = ("routed", "unrouted", "placebo words")
PROMPTS = ("one day", "once upon a time there was a little girl. one day she", "tim was in the park when he saw")
SETTINGS = ("experiment=steering_scalar", "dataset=text", "trainer.epochs=1")
METRICS = {f"{kind}_llr": "+.3f" for kind in ("related", "matched", "routed", "other")}
METRICS |= {f"{kind}_times": ".2f" for kind in ("related", "matched", "routed")}
HEADS = ("steered", "steered_placebo")  # the dimension, and the random ones
VARIED = ("family", "condition", "seed", "head", "kl", "overrides")  # columns of the results
Values = dict[tuple[str, float], Numbers]  # by head and level of KL, the numbers by metric


def overrides(family: str, condition: str, seed: int, files: str) -> list[str]:
    """Return the overrides that make one run."""
    own = FAMILIES[family]
    routing = "steering_unrouted" if condition == "unrouted" else "steering_words"
    word = own.placebo if condition == "placebo words" else own.routed
    return [
        *SETTINGS,
        f"name=steering_{family}_{condition.replace(' ', '_')}",
        f"dataset.files={literal(files)}",
        f"routing={routing}",
        f"routing.groups.target.words=[{word}]",
        f"steering.related={literal(own.related.split())}",
        f"steering.kl={literal(LEVELS)}",
        f"steering.prompts={literal(PROMPTS)}",
        f"seed={seed}",
    ]


def read(run: Path) -> Values:
    """Return what a run measured last; nan for what it did not measure."""
    rows = final_rows(read_metrics(run, read_manifest(run)))
    values = {(row["head"], row["region"], row["metric"]): row["value"] for row in rows}
    return {
        (head, level): {metric: values.get((head, f"kl_{level:g}", metric), math.nan) for metric in METRICS}
        for head in HEADS
        for level in LEVELS
    }


def measure(values: Values, level: float, head: str = "steered") -> float:
    """Return the measure: the ratio of the relatives minus that of words of their frequency, in nats."""
    return values[head, level]["related_llr"] - values[head, level]["matched_llr"]


def shown(values: Sequence[float], form: str = "+.3f") -> str:
    """Return the mean as text, with the half-width of its interval for several; nothing if a run lacks the value."""
    return "" if any(map(math.isnan, values)) else intervals.shown(values, form)


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines)


def differences(found: dict[str, list[Values]], level: float) -> list[str]:
    """Return the measure of the routed runs, and paired by seed what it has over every control."""
    own = [measure(values, level) for values in found["routed"]]
    controls: dict[str, Callable[[int], float]] = {
        "unrouted": lambda i: measure(found["unrouted"][i], level),
        "placebo words": lambda i: measure(found["placebo words"][i], level),
        "random dimensions": lambda i: measure(found["routed"][i], level, "steered_placebo"),
    }
    return [shown(own), *(shown([own[i] - control(i) for i in range(len(own))]) for control in controls.values())]


def measured(a: argparse.Namespace) -> dict[str, dict[str, list[Values]]]:
    """Return the values by family and condition of all seeds that have every condition; make what is not kept."""
    kept, asked = Kept(a.results, VARIED, tuple(METRICS)), " ".join(a.overrides)

    def keys(family: str, seed: int, condition: str) -> dict[tuple[str, float], Key]:
        places = [(head, level) for head in HEADS for level in LEVELS]
        return {(head, kl): (family, condition, str(seed), head, f"{kl:g}", asked) for head, kl in places}

    def planned(family: str, seed: int, name: str) -> Planned:
        own = keys(family, seed, name)
        given = [*overrides(family, name, seed, a.files), *a.overrides]

        def rows(run: Path) -> dict[Key, Numbers]:
            values = read(run)
            return {key: values[place] for place, key in own.items()}

        return Planned(f"{family}, {name}, seed {seed}", given, rows)

    families = a.family or list(FAMILIES)
    if not a.table:
        wanted = [(family, seed, name) for family in families for seed in range(a.seeds) for name in CONDITIONS]
        missing = [planned(*one) for one in wanted if not kept.found.keys() >= set(keys(*one).values())]
        make_and_keep(missing, kept, a.jobs)
    found: dict[str, dict[str, list[Values]]] = {family: {name: [] for name in CONDITIONS} for family in families}
    for family in families:
        for seed in range(a.seeds):
            places = {name: keys(family, seed, name) for name in CONDITIONS}
            if all(key in kept.found for own in places.values() for key in own.values()):
                for name, of in places.items():
                    found[family][name].append({place: kept.found[key] for place, key in of.items()})
    if a.table and not any(of["routed"] for of in found.values()):
        raise kept.nothing()
    return found


def print_tables(families: dict[str, dict[str, list[Values]]]) -> None:
    """Print the differences to the controls, and every condition's values."""
    paired, each = [], []
    for family, found in families.items():
        seeds = len(found["routed"])
        for level in LEVELS if seeds else ():
            paired.append([family, f"{level:g}", str(seeds), *differences(found, level)])
            for condition, head in (*((c, "steered") for c in CONDITIONS), ("routed", "steered_placebo")):
                numbers = [values[head, level] for values in found[condition]]
                cells = [shown([own[metric] for own in numbers], form) for metric, form in METRICS.items()]
                name = condition if head == "steered" else "routed, random dimensions"
                each.append([family, f"{level:g}", name, *cells])
    columns = ["family", "KL", "seeds", "relatives minus matched", "minus unrouted", "minus placebo words",
               "minus random dimensions"]  # fmt: skip
    print(table(columns, paired), end="\n\n")
    print(table(["family", "KL", "condition", "relatives", "matched", "routed word", "other tokens",
                 "relatives ×", "matched ×", "routed word ×"], each))  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs and print the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", help="a file or folder of stories, as dataset.files takes it")
    parser.add_argument("--family", action="append", choices=list(FAMILIES), help="repeatable; all if not given")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="number of seeds, from 0 on (default %(default)s)")
    print_tables(measured(parsed(parser, arguments, jobs=1)))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
