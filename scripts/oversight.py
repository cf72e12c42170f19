"""Train every arm of oversight at several shares of oversight and seeds, and make the table and the plots.

python scripts/oversight.py --seeds 5 --shares 0.003 0.01 0.03 0.05 0.1 0.3 0.8      the study of GR section 4.3
python scripts/oversight.py --seeds 2 --shares 0.05 --arms routing early_stopping    a part of it
python scripts/oversight.py --table                                                  only from the runs that there are

Further arguments are overrides of every run, such as trainer=paper. Runs that are finished are not made again, so that
the same command continues a study that was stopped. The naive arm is the final policy of `early_stopping`, which
trains it and only keeps weights besides. The arms `blind` and `placebo` are `routing` with a policy that sees no flags,
and with endings that are named by a coin.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import pyplot as plt

from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.records.run_reader import read_manifest, read_mapping
from gradroute.records.tables import read_metrics
from gradroute.reporting.intervals import interval, shown

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
POLICY, STEERED, STOPPED = ("policy", "all"), ("policy_steered", "diamond_expert"), ("policy_stopped", "all")
SHOWN = {  # the rows of the table: experiment and head
    "routing, steered": ("oversight_routing", STEERED),
    "routing, not steered": ("oversight_routing", POLICY),
    "naive": ("oversight_early_stopping", POLICY),
    "naive, stopped by the seen return": ("oversight_early_stopping", STOPPED),
    "filtering": ("oversight_filtering", POLICY),
    "oracle, a share of the updates": ("oversight_oracle", POLICY),
    "no routing, steered": ("oversight_no_routing", STEERED),
    "no gate, steered": ("oversight_no_gate", STEERED),
    "routing, steered, blind to flags": ("oversight_blind", STEERED),
    "routing, steered, placebo": ("oversight_placebo", STEERED),
}


@dataclass(frozen=True)
class Trained:
    """A finished run of an arm."""

    name: str
    share: float
    seed: int
    path: Path
    rows: list[dict[str, Any]]

    def curve(self, head: tuple[str, str], metric: str = "return") -> list[tuple[int, float]]:
        """Return updates and values of a head's test measurements."""
        return [(row["step"], row["value"]) for row in self.rows if row["split"] == "test" and
                (row["head"], row["region"], row["metric"]) == (*head, metric)]  # fmt: skip

    def gate(self) -> dict[str, float]:
        """Return the gate's last mean in the steps of each group."""
        return {row["group"]: row["value"] for row in self.rows if row["metric"] == "gate" and row["split"] == "test"}


def train(arms: Sequence[str], shares: Sequence[float], seeds: Sequence[int], given: list[str], out: Path) -> None:
    """Make every run that is not there, seed by seed, so that a study that is stopped has whole seeds."""
    from gradroute.running.runner import execute

    for seed in seeds:
        for share in shares:
            for arm in arms:
                own = [f"seed={seed}", f"environment.oversight={share}", f"output_dir={out}"]
                (outcome,) = execute([configuration([*ARMS[arm], "trainer=fast", *given, *own])], reuse=True)
                if isinstance(outcome, Exception):
                    raise outcome


def finished(out: Path) -> Iterator[Trained]:
    """Yield the finished runs in a folder."""
    for path in sorted(out.glob("oversight_*/*/manifest.json")):
        run = path.parent
        manifest = read_manifest(run)
        if manifest["state"] == "finished":
            mapping = read_mapping(run, manifest)
            share = float(mapping["environment"]["oversight"])
            yield Trained(mapping["name"], share, int(mapping["seed"]), run, read_metrics(run, manifest))


def values(runs: Sequence[Trained], name: str, head: tuple[str, str], share: float) -> list[float]:
    """Return the last return of a head in every seed's run."""
    own = [run.curve(head) for run in runs if (run.name, run.share) == (name, share)]
    return [curve[-1][1] for curve in own if curve]


def ceilings(runs: Sequence[Trained]) -> dict[float, dict[str, float]]:
    """Return the exact ceilings by share of oversight, as the runs have them."""
    return {run.share: json.loads((run.path / "figures.json").read_text()).get("ceilings", {}) for run in runs}


def table(runs: Sequence[Trained]) -> str:
    """Return the returns as a table in Markdown: mean over seeds, 95 % t-interval, and the number of seeds."""
    shares = sorted({run.share for run in runs})
    lines = ["| policy | " + " | ".join(f"p = {share:g}" for share in shares) + " |", "|---" * (len(shares) + 1) + "|"]
    for label, (name, head) in SHOWN.items():
        cells = [
            (shown(found), len(found)) if (found := values(runs, name, head, share)) else ("", 0) for share in shares
        ]
        if any(count for _, count in cells):
            lines.append(f"| {label} | " + " | ".join(f"{text} ({n})" if n else "" for text, n in cells) + " |")
    exact = ceilings(runs)
    for ceiling in next(iter(exact.values()), {}):
        lines.append(f"| exact: {ceiling} | " + " | ".join(f"{exact[share][ceiling]:.3f}" for share in shares) + " |")
    return "\n".join(lines)


def peaks(runs: Sequence[Trained]) -> str:
    """Return where the naive arm's true return is highest, and what the gate says, seed by seed."""
    lines = []
    for run in runs:
        if run.name == "oversight_early_stopping":
            step, value = max(run.curve(POLICY), key=lambda point: point[1])
            last = run.curve(POLICY)[-1]
            lines.append(f"naive, p = {run.share:g}, seed {run.seed}: highest {value:.3f} at update {step}, "
                         f"{last[1]:.3f} at update {last[0]}")  # fmt: skip
        if gate := run.gate():
            said = ", ".join(f"{group} {value:.3f}" for group, value in gate.items())
            lines.append(f"gate, {run.name}, p = {run.share:g}, seed {run.seed}: {said}")
    return "\n".join(lines)


def draw(runs: Sequence[Trained], path: Path) -> None:
    """Draw the return against the share of oversight, and over the updates at the share with the most runs."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.2), layout="constrained", sharey=True)
    shares = sorted({run.share for run in runs})
    main = max(shares, key=lambda share: sum(run.share == share for run in runs))
    for number, (label, (name, head)) in enumerate(SHOWN.items()):
        found = {share: own for share in shares if (own := values(runs, name, head, share))}
        if not found:
            continue
        colour = f"C{number}"
        means = [sum(own) / len(own) for own in found.values()]
        bars = [0.0 if len(own) < 2 else interval(own) for own in found.values()]
        left.errorbar(list(found), means, bars, color=colour, marker="o", markersize=4, capsize=3, label=label)
        curves = [run.curve(head) for run in runs if (run.name, run.share) == (name, main)]
        for curve in curves:
            right.plot(*zip(*curve, strict=True), color=colour, linewidth=1)
    exact = ceilings(runs)
    for ceiling, style in (("optimum", "-"), ("straight", "--"), ("naive optimum", ":")):
        own = [exact[share][ceiling] for share in shares]
        left.plot(shares, own, style, color="#777777", marker="_", label=f"exact: {ceiling}")
        right.axhline(exact[main][ceiling], linestyle=style, color="#777777", linewidth=1)
    left.set_xscale("log")
    left.set_xlabel("share of oversight p")
    left.set_ylabel("true return, mean over steps; bars: 95 % t-intervals over seeds")
    right.set_xlabel("update")
    right.set_title(f"every seed at p = {main:g}", fontsize=10)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    """Train what is missing, and write `oversight.md` and `oversight.png`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS), help="arms to train")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.05], help="probabilities of oversight")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--out", type=Path, default=Path("outputs/oversight_study"), help="folder of the runs")
    parser.add_argument("--table", action="store_true", help="train nothing")
    arguments, given = parser.parse_known_args()
    if not arguments.table:
        train(arguments.arms, arguments.shares, range(arguments.seeds), given, arguments.out)
    runs = list(finished(arguments.out))
    if not runs:
        raise UserError(f"--out {arguments.out}: has no finished run")
    text = f"{table(runs)}\n\n{peaks(runs)}\n"
    (arguments.out / "oversight.md").write_text(text)
    draw(runs, arguments.out / "oversight.png")
    print(text)


if __name__ == "__main__":
    main()
