"""Measure how time and memory grow with the sizes of a model, of its data and of its routes.

python scripts/growth.py --out outputs/measured/growth      writes growth.json and growth.png; a minute

The model is a layer, a GELU whose units are routed, and a second layer. For each size along an axis three steps take
turns: without routes, with routes as in a run's usual update, and with the ledger's measurement, too (which a run makes
every tenth update).
What routing adds is the difference to the step without. The exponent is the slope of the logarithm of the cost over
the logarithm of the size, by least squares; what routing adds may not grow faster than the model. Memory is exact: the
bytes that the backward pass keeps, the weights, and the tables of the routes. The axis `seeds` trains a stack of small
runs of the MNIST split, with `routing=none` and with routes.
"""

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from figures import Figure
from matplotlib.ticker import EngFormatter, NullFormatter, NullLocator
from split_speed import ours, read
from torch import nn
from turns import Step, timed

from gradroute import ParameterRouter, Region, Router
from gradroute.config.compose import configuration
from gradroute.records.provenance import hardware
from gradroute.running.exit_status import guarded
from gradroute.training.ledger import Ledger

Costs = dict[str, list[float]]  # by what: one for each size
KINDS = ("model", "routes", "ledger")


@dataclass(frozen=True)
class Case:
    """One size of everything: units of both layers; rows, and tokens in a row, with a group of their own.

    routes: pairs of a group and a region with a weight other than 1.
    """

    units: int = 512
    batch: int = 512
    tokens: int = 1
    regions: int = 2
    groups: int = 2
    routes: int = 2


AXES: dict[str, tuple[Case, tuple[int, ...]]] = {  # by axis: what is fixed, and the sizes
    "units": (Case(), (128, 256, 512, 1024, 2048)),
    "batch": (Case(), (128, 256, 512, 1024, 2048)),
    "tokens": (Case(units=256, batch=8), (32, 64, 128, 256, 512)),
    "regions": (Case(), (2, 10, 100)),
    "groups": (Case(), (2, 10, 100)),
    "routes": (Case(regions=100, groups=100), (100, 1000, 10000)),
}
SEEDS = (1, 2, 4, 8)
NONE = 0.05  # an exponent that is not told from 0, as that of a step without routes along groups and regions
SMALL = ("trainer=fast", "trainer.device=cpu", "model.hidden=[256,64]", "trainer.batch_size=256")


def network(case: Case) -> nn.Module:
    """Return the model of a case."""
    return nn.Sequential(nn.Linear(case.units, case.units), nn.GELU(), nn.Linear(case.units, case.units))


def router_of(model: nn.Module, case: Case, example: torch.Tensor) -> Router:
    """Return a router whose regions share the units, with as many routes as the case has."""
    size = case.units // case.regions
    regions = {f"r{i}": Region("1", f"{i * size}:{(i + 1) * size}") for i in range(case.regions)}
    groups = [f"g{i}" for i in range(case.groups)]
    routes: dict[str, dict[str, float]] = {}
    for number in range(case.routes):
        group, region = f"g{number % case.groups}", f"r{number // case.groups % case.regions}"
        routes.setdefault(group, {})[region] = 0.5
    return Router(model, regions, groups, routes, example)


def steps(case: Case) -> tuple[dict[str, Step], dict[str, int]]:
    """Return each kind of step, and the bytes that it holds."""
    torch.manual_seed(0)
    model, inputs = network(case), torch.randn(case.batch, case.tokens, case.units)
    router = router_of(model, case, inputs[:1])
    membership = torch.randint(case.groups, (case.batch, case.tokens))
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    without = ParameterRouter(model, {}, router.groups, {})
    ledgers = {
        kind: Ledger(router, without, membership, 10**9, every) for kind, every in (("routes", 10**9), ("ledger", 1))
    }
    made = dict.fromkeys(ledgers, 0)

    def step(kind: str) -> None:
        optimizer.zero_grad()
        if kind == "model":
            loss = model(inputs).square().mean()
        else:
            router.at_step(made[kind])
            with router.route(membership, ledgers[kind].begin(made[kind], membership)):
                loss = model(inputs).square().mean()
            made[kind] += 1
        loss.backward()
        optimizer.step()

    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    tables = sum(t.numel() * t.element_size() for t in router.masks.values()) * 2  # weights, and forward factors
    held = {p.untyped_storage().data_ptr() for p in model.parameters()}
    memory = {kind: weights + kept(step, kind, held) + (tables if kind != "model" else 0) for kind in KINDS}
    memory["activations"] = memory["model"] - weights
    return {kind: partial(step, kind) for kind in KINDS}, memory


def kept(step: Callable[[str], None], kind: str, held: set[int]) -> int:
    """Return the bytes that autograd keeps for the backward pass, each storage once, without those in `held`."""
    seen: dict[int, int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        step(kind)
    return sum(size for pointer, size in seen.items() if pointer not in held)


def stacked(seeds: int) -> dict[str, Step]:
    """Return three updates of a stack of small runs, without routes and with them; the ledger measures no stack."""
    found = {}
    for kind, more in (("model", ["routing=none", "losses.certificates=[]"]), ("routes", ["losses.certificates=[]"])):
        configs = [configuration([*SMALL, *more, f"seed={seed}"]) for seed in range(seeds)]
        found[kind] = ours(read(configs[0], "cpu"), configs, 3 * configs[0].trainer.batch_size)
    return found


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return the slope of log cost over log size; nan if fewer than three costs are positive."""
    known = [(math.log(size), math.log(cost)) for size, cost in zip(sizes, costs, strict=True) if cost > 0]
    if len(known) < 3:
        return math.nan
    return statistics.linear_regression([x for x, _ in known], [y for _, y in known]).slope


def summary(sizes: Sequence[int], seconds: Sequence[Costs], memory: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """Return the costs of the model and what routes and ledger add, over the sizes, with their exponents."""
    found: dict[str, Any] = {"sizes": list(sizes), "seconds": {}, "bytes": {}, "exponents": {}}
    for kind in seconds[0]:
        bases = [own["model"] if kind != "model" else [0.0] * len(own["model"]) for own in seconds]
        times = [
            statistics.median(t - less for t, less in zip(own[kind], base, strict=True))
            for own, base in zip(seconds, bases, strict=True)
        ]
        found["seconds"][kind] = times
        found["exponents"][f"{kind}, seconds"] = exponent(sizes, times)
        if memory:
            held = [own[kind] - (own["model"] if kind != "model" else 0) for own in memory]
            found["bytes"][kind] = held
            found["exponents"][f"{kind}, bytes"] = exponent(sizes, held)
    if memory:
        found["exponents"]["activations, bytes"] = exponent(sizes, [own["activations"] for own in memory])
    return found


def draw(measured: Mapping[str, Any], file: Path) -> None:
    """Draw time and memory over every axis, with the exponents."""
    figure, axes = plt.subplots(2, len(measured), figsize=(3.1 * len(measured), 7), layout="constrained", squeeze=False)
    labels = {"model": "model without routes", "routes": "added by routes", "ledger": "added by routes and measurement"}
    for column, (axis, found) in enumerate(measured.items()):
        for plot, what, unit in ((axes[0, column], "seconds", "s"), (axes[1, column], "bytes", "B")):
            for kind, values in found[what].items():
                slope = found["exponents"][f"{kind}, {what}"]
                shown = [value if value > 0 else math.nan for value in values]
                plot.plot(found["sizes"], shown, marker="o", markersize=4, label=f"{labels[kind]}: {slope:.2f}")
            if not found[what]:
                plot.remove()  # the memory of a stack is not counted
                continue
            plot.set(xscale="log", yscale="log", xlabel=axis)
            plot.set_xticks(found["sizes"], [str(size) for size in found["sizes"]])
            plot.xaxis.set_minor_locator(NullLocator())
            plot.yaxis.set_major_formatter(EngFormatter(unit))
            plot.yaxis.set_minor_formatter(NullFormatter())
            plot.legend(fontsize=7, title="exponent", title_fontsize=7, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(file, dpi=110)


def grown(axis: str, rounds: int) -> dict[str, Any]:
    """Measure one axis, and return its summary."""
    if axis == "seeds":
        return summary(SEEDS, [timed(stacked(seeds), max(3, rounds // 3), 2) for seeds in SEEDS], [])
    base, sizes = AXES[axis]
    made = [steps(replace(base, **{axis: size})) for size in sizes]
    return summary(sizes, [timed(kinds, rounds, 2) for kinds, _ in made], [held for _, held in made])


def growth(device: str, rounds: int) -> tuple[list[dict[str, str]], list[Figure]]:
    """Measure every axis on the CPU; return exponents, and by how much those of what routes add are above the model's.

    Memory is compared with that of the model's activations, since weights stay the same along batch and tokens. Along
    regions, groups and routes the model stays the same, so that its exponents are 0.
    """
    rows, figures = [], []
    for axis in (*AXES, "seeds"):
        found = [grown(axis, 2 * rounds)["exponents"] for _ in range(3)]
        medians = {name: statistics.median(own[name] for own in found) for name in found[0]}
        rows.append({"what": axis} | {name: f"{value:.2f}" for name, value in medians.items()})
        for kind in ("routes", "ledger"):
            for unit, of in (("seconds", "model"), ("bytes", "activations")):
                above = [own.get(f"{kind}, {unit}", math.nan) - own.get(f"{of}, {unit}", math.nan) for own in found]
                if not any(map(math.isnan, above)):
                    name = f"{axis}: exponent of {unit}, {kind} minus {of}"
                    figures.append(Figure(name, [round(value, 2) for value in above], NONE, at_most=True))
    return rows, figures


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--only", default=",".join((*AXES, "seeds")), help="axes (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="write FILE.json and FILE.png")
    a = parser.parse_args()
    measured: dict[str, Any] = {}
    for axis in a.only.split(","):
        measured[axis] = grown(axis, a.rounds)
        print(axis, *(f"{name} {value:.2f}" for name, value in measured[axis]["exponents"].items()), sep="; ")
    if a.out:
        facts = {"date": time.strftime("%Y-%m-%d"), "torch": torch.__version__, **hardware(), "rounds": a.rounds}
        facts["base"] = {axis: asdict(base) for axis, (base, _) in AXES.items()}
        a.out.with_suffix(".json").write_text(json.dumps(facts | {"axes": measured}, indent=2) + "\n")
        draw(measured, a.out.with_suffix(".png"))


if __name__ == "__main__":
    raise SystemExit(guarded(main))
