"""Measure where absorption holds: unlearn a second language with few labels, by each method, against the control.

python scripts/second_language_study.py --seeds 5 --jobs 2          [OVERRIDE …] are overrides of every run
python scripts/second_language_study.py --part capacity --seeds 3   varies units and updates at a quarter of labels
python scripts/second_language_study.py --part noise --seeds 5      labels retain documents as forget
python scripts/second_language_study.py --results FILE.csv          keeps the numbers there, and continues from them
python scripts/second_language_study.py --results FILE.csv --table  makes no runs

What is measured is fixed here, before any run: forget and retain loss on the test documents once unlearned (ablated
and fine-tuned; of filtering and the base, as trained), and the forget loss after relearning from 32 documents at the
attacker's best of five rates. Each is given as the difference to the control of the same seed, which is expanded and
ablated but not routed. Leakage is SGTM's (arXiv 2512.05648, definition G.1): the number of forget tokens that, seen
without a label by a filtered model, give the same forget loss, as a share of those that the run saw without a label;
0 is none, 1 is filtering. The same command continues a study that was stopped; seeds come one after another.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
from kept import Kept, Key
from matplotlib import pyplot as plt
from study_runs import Planned, losses, make_and_keep, parsed

from gradroute.config.compose import configuration
from gradroute.reporting.intervals import interval, shown
from gradroute.running.exit_status import guarded
from gradroute.tasks.language import LanguageModelling

FRACTIONS = (1.0, 0.5, 0.25, 0.1)
ANCHORS = (1.0, 0.98, 0.95)  # labelled fractions of further filtered models, between which leakage is read
NOISE = (0.02, 0.1)  # shares of retain documents that are labelled forget
BESIDE = 1.03  # ratio of places on the axis, so that bars do not cover each other
LEVELS = (-0.1, 0, 0.1, 1, 10)  # marks on the axis of losses
RATES = (0.03, 0.1, 0.3, 1.0, 3.0)  # of the attack, as shares of trainer.lr
RELEARNED = "model_relearned_32"
KEYS = ("forget", "retain", "relearned")
VARIED = ("method", "varied", "labelled_fraction", "seed", "overrides")  # columns of the results
Ends = dict[str, float]  # losses by these keys
ENDS = ("model_finetuned", "model_ablated", "model")  # the last of these heads is the unlearned model
METHODS: dict[str, tuple[str, list[str]]] = {  # a name: the experiment, and its changes
    "ERA, weight -0.75": ("era", []),
    "ERA, weight 0": ("era", ["routing.routes.forget.original=0"]),
    "ERA, compensated": ("era", ["routing.compensate=labels"]),
    "SGTM": ("sgtm", []),
    "filtering": ("filtering", []),
}
CAPACITY = {
    "": [], "16 added units": ["model.added=16"], "256 added units": ["model.added=256"],
    "6 epochs": ["trainer.epochs=6"], "width 256": ["model.width=256", "model.hidden=1024"],
}  # fmt: skip
COMMON = [
    "completions=null", "dataset.test_stories=600", "trainer.tune_steps=20", "finetune.documents=[32]",
    "finetune.every=4", "relearn.documents=[32]", "relearn.every=4", f"relearn.rates=[{','.join(map(str, RATES))}]",
]  # fmt: skip


@dataclass(frozen=True)
class Plan:
    """A run to make: the name of its method, what was varied, its labelled fraction, seed and overrides."""

    method: str
    varied: str
    fraction: float
    seed: int
    given: tuple[str, ...]


def plan(method: str, varied: str, fraction: float, seed: int, changes: Sequence[str]) -> Plan:
    """Return a run of a method."""
    experiment, own = METHODS.get(method, (method, []))
    final = ["finetune"] if experiment in ("era", "control", "sgtm") else []
    steps = ["train", *(["ablate"] if final else []), *final, "relearn", "evaluate"]
    common = COMMON if final else [setting for setting in COMMON if not setting.startswith("finetune.")]
    given = [f"experiment=second_language/{experiment}", f"seed={seed}", f"steps=[{','.join(steps)}]", *common, *own]
    given += [f"routing.labelled_fraction={fraction}", "checkpoint.keep=none", *changes]
    return Plan(method, varied, fraction, seed, tuple(given))


def labels(seed: int, fractions: Sequence[float], more: Sequence[str]) -> Iterator[Plan]:
    """Yield the runs of one seed over labelled fractions."""
    yield plan("control", "", 1.0, seed, more)
    for fraction in fractions:
        for method in METHODS:
            if (method, fraction) != ("ERA, compensated", 1.0):  # the same as weight 0
                yield plan(method, "", fraction, seed, more)
    for fraction in (share for share in ANCHORS if share not in fractions):
        yield plan("filtering", "", fraction, seed, more)


def noise(seed: int, fractions: Sequence[float], more: Sequence[str]) -> Iterator[Plan]:
    """Yield the runs of one seed over label noise."""
    yield plan("control", "", 1.0, seed, more)
    for rate in NOISE:
        noisy = f"routing.label_noise={{forget:{{false_positive:{rate}}}}}"
        for method in ("ERA, weight -0.75", "SGTM", "filtering"):
            yield plan(method, f"{rate:.0%} of retain labelled forget", 1.0, seed, [noisy, *more])


def capacity(seed: int, fractions: Sequence[float], more: Sequence[str]) -> Iterator[Plan]:
    """Yield the runs of one seed over added units, updates and width, at a quarter of the labels."""
    for varied, changes in CAPACITY.items():
        for method in ("control", "ERA, weight -0.75", "ERA, weight 0"):
            yield plan(method, varied, 1.0 if method == "control" else 0.25, seed, [*changes, *more])


PARTS = {"labels": labels, "noise": noise, "capacity": capacity}


def ends(run: Path) -> Ends:
    """Return a run's test losses: forget and retain once unlearned, and forget relearned."""
    found = losses(run, "test")
    head = next(head for head in ENDS if (head, "forget") in found)
    return {"forget": found[head, "forget"], "retain": found[head, "retain"], "relearned": found[RELEARNED, "forget"]}


def planned(run: Plan, key: Key) -> Planned:
    """Return a run to make, whose row has this key."""
    said = f"{run.method}, {run.fraction:.0%}, {run.varied}, seed {run.seed}"
    return Planned(said, list(run.given), lambda folder: {key: ends(folder)})


def forget_tokens(given: Sequence[str]) -> int:
    """Return the number of forget tokens among the training documents."""
    task = LanguageModelling(configuration([*given, "trainer.device=cpu"]))
    own = task.train_groups == task.names.index("forget")
    return int(own[task.data.train.corpus.documents].sum())


def leakage(loss: float, fraction: float, filtered: dict[float, float]) -> float:
    """Return the share of unlabelled forget tokens that give a filtered model this loss; `filtered` by fraction."""
    anchors = sorted((forget, 1 - labelled) for labelled, forget in filtered.items())
    equivalent = np.interp(loss, [forget for forget, _ in anchors], [share for _, share in anchors])
    return float(equivalent) / (1 - fraction)


def filtered_losses(found: dict[Plan, Ends]) -> dict[int, dict[float, float]]:
    """Return the forget losses of filtered models by seed and labelled fraction; at 0 % that of the control."""
    losses_of: dict[int, dict[float, float]] = {}
    for p, own in found.items():
        if p.method == "filtering" and not p.varied:
            losses_of.setdefault(p.seed, {})[p.fraction] = own["forget"]
        if p.method == "control" and not p.varied:
            losses_of.setdefault(p.seed, {})[0.0] = own["forget"]
    return losses_of


def differences(found: dict[Plan, Ends], method: str, fraction: float, varied: str, key: str) -> list[float]:
    """Return a setting's losses minus those of the control of the same seed, varied alike if there is such a one."""
    control = {(p.varied, p.seed): own for p, own in found.items() if p.method == "control"}
    mine = {p.seed: own for p, own in found.items() if (p.method, p.fraction, p.varied) == (method, fraction, varied)}
    beside = varied if (varied, next(iter(mine), None)) in control else ""
    return [own[key] - control[beside, seed][key] for seed, own in mine.items() if (beside, seed) in control]


def print_table(found: dict[Plan, Ends], tokens: int) -> None:
    """Print means over seeds of every setting, and of differences to the control of the same seed.

    tokens: forget tokens among the training documents.
    """
    filtered = filtered_losses(found)
    print("| method | labels | varied | seeds | forget | retain | relearned | minus control: forget | retain "
          "| relearned | leakage |\n" + "|---" * 11 + "|")  # fmt: skip
    for setting in dict.fromkeys((p.method, p.fraction, p.varied) for p in found):
        method, fraction, varied = setting
        mine = {p.seed: own for p, own in found.items() if (p.method, p.fraction, p.varied) == setting}
        cells = [shown([own[key] for own in mine.values()]) for key in KEYS]
        for key in KEYS:
            minus = differences(found, *setting, key)
            cells.append(shown(minus) if minus and method != "control" else "")
        asked = method not in ("control", "filtering") and not varied and fraction < 1
        known = [seed for seed in mine if asked and len(filtered.get(seed, {})) > 3]
        leaks = [leakage(mine[seed]["forget"], fraction, filtered[seed]) for seed in known]
        leaked = f"{shown(leaks)} ({mean(leaks) * (1 - fraction) * tokens:.0f} tokens)" if leaks else ""
        said = "" if method == "control" else f"{fraction:.0%}"
        print(f"| {method} | {said} | {varied} | {len(mine)} | {' | '.join(cells)} | {leaked} |")
    print(f"\nThere are {tokens} forget tokens to train on. Rates of the attack: {RATES} x trainer.lr.")


def draw(found: dict[Plan, Ends], fractions: Sequence[float], path: Path) -> None:
    """Draw the differences to the control against the labelled fraction, after unlearning and after relearning."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4.4), layout="constrained", sharex=True)
    for axes, key in zip(panels, ("forget", "relearned"), strict=True):
        for number, method in enumerate(METHODS):
            minus = {share: differences(found, method, share, "", key) for share in sorted(fractions)}
            points = {share: own for share, own in minus.items() if own}
            beside = [share * BESIDE ** (number - len(METHODS) / 2) for share in points]
            bars = [interval(own) if len(own) > 1 else 0.0 for own in points.values()]
            axes.errorbar(beside, list(map(mean, points.values())), bars, marker="o", markersize=4, capsize=3,
                          linewidth=1, label=method)  # fmt: skip
        axes.axhline(0, color="black", linewidth=0.8)
        axes.set_xscale("log")
        axes.set_yscale("symlog", linthresh=0.1, linscale=0.4)
        axes.minorticks_off()
        axes.set_yticks(LEVELS, map(str, LEVELS))
        axes.set_ylim(bottom=2 * LEVELS[0])
        axes.set_xticks(fractions, [f"{fraction:.0%}" for fraction in fractions])
        axes.set_xlabel("labelled share of the forget documents")
        axes.set_title({"forget": "once unlearned", "relearned": "relearned at the attacker's best rate"}[key])
    panels[0].set_ylabel("forget loss minus the control's, nats per token")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--part", choices=list(PARTS), default="labels")
    parser.add_argument("--fractions", type=float, nargs="+", default=FRACTIONS, help="labelled fractions")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--preset", default="fast", help="trainer= of every run (default fast)")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="draw the curves over labelled fractions")
    a = parsed(parser, arguments)
    more = [f"trainer={a.preset}", "output_dir=outputs/second_language_study", *a.overrides]
    plans = [run for seed in range(a.seeds) for run in PARTS[a.part](seed, a.fractions, more)]
    kept, asked = Kept(a.results, VARIED, KEYS), " ".join([f"trainer={a.preset}", *a.overrides])
    keys = {run: (run.method, run.varied, f"{run.fraction:g}", str(run.seed), asked) for run in plans}
    if not a.table:
        make_and_keep([planned(run, key) for run, key in keys.items() if key not in kept.found], kept, a.jobs)
    found = {run: kept.found[key] for run, key in keys.items() if key in kept.found}
    if a.table and not found:
        raise kept.nothing()
    print_table(found, forget_tokens(plans[0].given))
    if a.plot:
        draw(found, a.fractions, a.plot)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
