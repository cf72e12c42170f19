"""Train every arm of oversight at several shares of oversight and seeds, and make the table and the plot.

python scripts/oversight.py --shares 0.003 0.01 0.03 0.05 0.1 0.3 0.8       the study of GR section 4.3, five seeds
python scripts/oversight.py --arms routing early_stopping --seeds 2         a part of it, at 5 % oversight
python scripts/oversight.py --table                                         trains nothing

Further arguments are overrides of every run, such as trainer=paper. The numbers are kept in `--results`, and what that
file has is not made again, so that the same command continues a study that was stopped, on another machine as well.
The naive arm is the final policy of `early_stopping`, which trains it and only keeps weights besides. The arms `blind`
and `placebo` are `routing` with a policy that sees no flags, and with endings that are named by a coin.
"""

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from kept import Kept, Key, Numbers
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from study_runs import Planned, make_and_keep

from gradroute.data.environments.exact import ceilings
from gradroute.data.environments.grid import moved
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.reporting.intervals import interval, shown
from gradroute.running.exit_status import guarded

ARMS: dict[str, list[str]] = {
    "routing": ["experiment=oversight/routing"],
    "early_stopping": ["experiment=oversight/early_stopping"],
    "filtering": ["experiment=oversight/filtering"],
    "oracle": ["experiment=oversight/oracle"],
    "no_routing": ["experiment=oversight/no_routing"],
    "no_gate": ["experiment=oversight/no_gate"],
    "blind": ["experiment=oversight/routing", "name=oversight_blind", "environment.blind=true"],
    "placebo": ["experiment=oversight/routing", "name=oversight_placebo", "environment.placebo=true"],
}
POLICY, SERVED = "policy", "served"  # the policy as trained, and as steered by the Diamond expert or stopped early
HEADS = {
    ("policy", "all"): POLICY, ("policy_steered", "diamond_expert"): SERVED, ("policy_stopped", "all"): SERVED,
}  # fmt: skip
GATE = {group: f"gate_{group}" for group in ("seen_diamond", "seen_ghost", "unseen")}  # its mean in their steps
VARIED = ("arm", "oversight", "seed", "overrides", "step")
MEASURED = (POLICY, SERVED, *GATE.values())
SHOWN = {  # the rows of the table: arm, and which of its policies
    "routing, steered": ("routing", SERVED),
    "routing, not steered": ("routing", POLICY),
    "naive": ("early_stopping", POLICY),
    "naive, stopped by the seen return": ("early_stopping", SERVED),
    "filtering": ("filtering", POLICY),
    "oracle, a share of the updates": ("oracle", POLICY),
    "no routing, steered": ("no_routing", SERVED),
    "no gate, steered": ("no_gate", SERVED),
    "routing, steered, blind to flags": ("blind", SERVED),
    "routing, steered, placebo": ("placebo", SERVED),
}
CEILINGS = {"optimum": "-", "straight": "--", "naive optimum": ":"}
SIZE = 5  # of the grid
BESIDE = 1.025  # factor from one arm to the next in the plot, so that their bars stand beside each other
Curve = dict[int, dict[str, float]]  # by update; nan where an arm has no such policy or gate


@dataclass(frozen=True)
class Plan:
    """A run to make: an arm at a share of oversight."""

    arm: str
    share: float
    seed: int

    def given(self, more: Sequence[str], out: Path) -> list[str]:
        """Return the run's overrides."""
        own = [f"seed={self.seed}", f"environment.oversight={self.share}", f"output_dir={out}"]
        return [*ARMS[self.arm], "trainer=fast", "checkpoint.keep=none", *more, *own]


def measured(run: Path) -> Curve:
    """Return what a finished run measured on its test worlds."""
    found: Curve = {}
    for row in read_metrics(run, read_manifest(run)):
        name = HEADS.get((row["head"], row["region"])) if row["metric"] == "return" else None
        name = GATE.get(row["group"]) if row["metric"] == "gate" else name
        if row["split"] == "test" and name:
            found.setdefault(row["step"], dict.fromkeys(MEASURED, math.nan))[name] = row["value"]
    return found


def curves(kept: Kept, overrides: str) -> dict[Plan, Curve]:
    """Return the curves of all runs with these overrides."""
    found: dict[Plan, Curve] = {}
    for (arm, share, seed, given, step), numbers in kept.found.items():
        if given == overrides:
            found.setdefault(Plan(arm, float(share), int(seed)), {})[int(step)] = numbers
    return found


def planned(plan: Plan, more: Sequence[str], out: Path) -> Planned:
    """Return a run to make; its rows are its updates."""
    own = (plan.arm, f"{plan.share:g}", str(plan.seed), " ".join(more))

    def rows(run: Path) -> dict[Key, Numbers]:
        return {(*own, str(step)): numbers for step, numbers in measured(run).items()}

    return Planned(f"{plan.arm}, p = {plan.share:g}, seed {plan.seed}", plan.given(more, out), rows)


def values(runs: Mapping[Plan, Curve], arm: str, policy: str, share: float) -> list[float]:
    """Return the last return of a policy in every seed's run."""
    last = [own[max(own)][policy] for own in of_arm(runs, arm, share)]
    return [value for value in last if not math.isnan(value)]


def table(runs: Mapping[Plan, Curve], shares: Sequence[float]) -> str:
    """Return the returns as a table in Markdown: mean over seeds, 95 % t-interval, and the number of seeds."""
    lines = ["| policy | " + " | ".join(f"p = {share:g}" for share in shares) + " |", "|---" * (len(shares) + 1) + "|"]
    for label, (arm, policy) in SHOWN.items():
        found = [values(runs, arm, policy, share) for share in shares]
        if any(found):
            cells = " | ".join(f"{shown(own)} ({len(own)})" if own else "" for own in found)
            lines.append(f"| {label} | {cells} |")
    exact = [ceilings(SIZE, share, moved(SIZE)) for share in shares]
    lines += [f"| exact: {name} | " + " | ".join(f"{own[name]:.3f}" for own in exact) + " |" for name in CEILINGS]
    return "\n".join(lines)


def of_arm(runs: Mapping[Plan, Curve], arm: str, share: float) -> list[Curve]:
    """Return the curves of an arm's seeds."""
    return [own for plan, own in runs.items() if (plan.arm, plan.share) == (arm, share)]


def gates(runs: Mapping[Plan, Curve]) -> str:
    """Return what the gate says at the end, and where the naive return is highest, as lines: means over seeds."""
    lines = []
    for arm, share in dict.fromkeys((plan.arm, plan.share) for plan in runs):
        found = of_arm(runs, arm, share)
        last = [own[max(own)] for own in found]
        if not math.isnan(last[0][GATE["unseen"]]):
            said = ", ".join(f"{group} {shown([own[name] for own in last])}" for group, name in GATE.items())
            lines.append(f"gate, {arm}, p = {share:g}: {said}")
        if arm == "early_stopping":
            at = [max(own, key=lambda step: own[step][POLICY]) for own in found]  # called at once
            highest = [own[step][POLICY] for own, step in zip(found, at, strict=True)]
            lines.append(f"naive, p = {share:g}: highest {shown(highest)} at updates {', '.join(map(str, sorted(at)))}")
    return "\n".join(lines)


def draw(runs: Mapping[Plan, Curve], shares: Sequence[float], path: Path) -> None:
    """Draw the return against the share of oversight, and over the updates at the share with the most runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained", sharey=True)
    main = max(shares, key=lambda share: sum(plan.share == share for plan in runs))
    for number, (label, (arm, policy)) in enumerate(SHOWN.items()):
        found, color = {share: own for share in shares if (own := values(runs, arm, policy, share))}, f"C{number}"
        if not found:
            continue
        beside = [share * BESIDE ** (number - len(SHOWN) / 2) for share in found]
        means = [sum(own) / len(own) for own in found.values()]
        bars = [0.0 if len(own) < 2 else interval(own) for own in found.values()]
        left.errorbar(beside, means, bars, color=color, marker="o", markersize=4, capsize=3, linewidth=1, label=label)
        each = of_arm(runs, arm, main)
        steps = [step for step in (each[0] if each else []) if all(step in own for own in each)]
        over = [[own[step][policy] for own in each] for step in steps]
        right.plot(steps, [sum(own) / len(own) for own in over], color=color, linewidth=1.5)
        right.fill_between(steps, list(map(min, over)), list(map(max, over)), color=color, alpha=0.15, linewidth=0)
    exact = {share: ceilings(SIZE, share, moved(SIZE)) for share in shares}
    for name, line in CEILINGS.items():
        left.plot(shares, [exact[share][name] for share in shares], line, color="black", marker="_", linewidth=1,
                  label=f"exact: {name}")  # fmt: skip
        right.axhline(exact[main][name], linestyle=line, color="black", linewidth=1)
    name_axes(left, right, shares, main)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def name_axes(left: Axes, right: Axes, shares: Sequence[float], main: float) -> None:
    """Label the axes of both plots."""
    left.set_xscale("log")
    left.minorticks_off()
    left.set_xticks(shares, [f"{share:g}" for share in shares])
    left.set_xlabel("share of oversight p")
    left.set_ylabel("true return, mean over steps; bars: 95 % t-intervals over seeds")
    right.set_xlabel("update")
    right.set_title(f"p = {main:g}: means of the seeds, and their ranges", fontsize=10)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, and write `oversight.md` and `oversight.png` to `--out`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms to train")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.05], help="probabilities of oversight")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument("--out", type=Path, default=Path("outputs/oversight_study"), help="folder of the runs")
    parser.add_argument("--results", type=Path, help="CSV of all numbers (default: OUT/curves.csv)")
    parser.add_argument("--table", action="store_true", help="train nothing")
    a, more = parser.parse_known_args(arguments)
    a.out.mkdir(parents=True, exist_ok=True)
    kept = Kept(a.results or a.out / "curves.csv", VARIED, MEASURED)
    plans = [Plan(arm, share, seed) for seed, share, arm in product(range(a.seeds), a.shares, a.arms)]
    if not a.table:
        there = curves(kept, " ".join(more))
        make_and_keep([planned(plan, more, a.out) for plan in plans if plan not in there], kept, a.jobs)
    runs = curves(kept, " ".join(more))
    if not runs:
        raise kept.nothing()
    shares = sorted({plan.share for plan in runs})
    text = f"{table(runs, shares)}\n\n{gates(runs)}\n"
    (a.out / "oversight.md").write_text(text)
    draw(runs, shares, a.out / "oversight.png")
    print(text)


if __name__ == "__main__":
    raise SystemExit(guarded(main))
