"""Attack every anchor alike, and collect what was found: axes, recovery curves, and every attempt."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from gradroute.audit import probes
from gradroute.audit.attacks import (
    Attempt,
    Budget,
    Curve,
    Points,
    attempt,
    calibrated,
    changed,
    chosen,
    prepared,
    rounded,
    shaken,
)
from gradroute.audit.lora import adapted
from gradroute.audit.material import FORGET, RETAIN, TEST, Documents, Material, Pictures
from gradroute.audit.measures import area
from gradroute.audit.questions import Questions
from gradroute.audit.verdict import Axis, own_gap
from gradroute.errors import UserError
from gradroute.models.logits import Divided
from gradroute.records.audits import INTACT, TWIN
from gradroute.routing import Site

Log = Callable[[str], None]
FOREIGN = "foreign"  # a kind of training points
LORA = "relearning by an adapter (LoRA)"
PROBE_RATES = (0.0003, 0.001, 0.003, 0.01, 0.3)  # learning rates of probes and certificates, absolute


@dataclass(frozen=True)
class Losses:
    """Losses on the group and on the rest, on test points, each by fold."""

    forget: list[float]
    retain: list[float]

    @classmethod
    def of(cls, material: Material, model: nn.Module) -> "Losses":
        """Measure a model."""
        return cls(material.each(model, FORGET, TEST), material.each(model, RETAIN, TEST))

    def as_row(self) -> dict[str, Any]:
        """Return the means."""
        return {key: round(sum(own) / len(own), 6) for key, own in ((FORGET, self.forget), (RETAIN, self.retain))}


@dataclass(frozen=True)
class Plan:
    """What is done to every anchor; see the step `audit`.

    Attributes:
        examples, adapted: numbers of training points to relearn from, by all weights and by an adapter of a `rank`.
        questions: what is asked without training. foreign: training points that have nothing to do with the group.
        site: where certificates of images read.
    """

    budget: Budget
    examples: tuple[int, ...]
    samples: int
    bits: tuple[int, ...]
    noise: tuple[float, ...]
    calibration: int
    probe_points: int
    probe_updates: int
    site: Site | None = None
    adapted: tuple[int, ...] = ()
    rank: int = 8
    questions: Questions = field(default_factory=Questions)
    foreign: Points | None = None


@dataclass
class Findings:
    """What an audit found.

    Attributes:
        losses: of every anchor before any attack. raw: values by axis and anchor, one per repetition. higher: axes in
            which more is more knowledge. curves: by attack and anchor, the mean test curve over repetitions.
        own_gaps: axes whose values are not losses of the model as it is, and are divided by a gap of their own.
        untried: what was not tried, and why.
        attempts: every trained attack, as a row. divergences: from the never-trained twin, in nats, by anchor and kind.
    """

    material: Material
    losses: dict[str, Losses] = field(default_factory=dict)
    raw: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    higher: set[str] = field(default_factory=set)
    own_gaps: set[str] = field(default_factory=set)
    untried: dict[str, str] = field(default_factory=dict)
    curves: dict[str, dict[str, Curve]] = field(default_factory=dict)
    attempts: list[dict[str, Any]] = field(default_factory=list)
    divergences: dict[str, dict[str, float]] = field(default_factory=dict)
    _twin: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(
        self, axis: str, anchor: str, values: Sequence[float], unit: str = "", higher: bool = False, own: bool = False
    ) -> None:  # fmt: skip
        """Add an anchor's values of an axis; see `own_gaps`."""
        self.raw.setdefault(axis, {})[anchor] = [float(value) for value in values]
        self.units[axis] = unit or f"{self.material.loss_name}, {self.material.unit}"
        self.higher |= {axis} if higher else set()
        self.own_gaps |= {axis} if own or higher else set()

    def axes(self) -> list[Axis]:
        """Return the axes: losses are divided by the gap before any attack, the others by their own."""
        gap = own_gap(self.raw.get("behaviour", {}), False)
        found = []
        for name, values in self.raw.items():
            own = name in self.own_gaps
            each = own_gap(values, name in self.higher) if own else gap
            found.append(Axis(name, self.units[name], values, each, name in self.higher))
        return found

    def compare(self, anchor: str, model: nn.Module) -> None:
        """Measure the KL divergence from the never-trained twin, which must come first, on group and rest."""
        for kind in (FORGET, RETAIN):
            own = self.material.outputs(model, kind)
            if own is not None and anchor == TWIN:
                self._twin[kind] = own
            elif own is not None and kind in self._twin:
                self.divergences.setdefault(anchor, {})[kind] = divergence(self._twin[kind], own)


def divergence(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the mean KL divergence of the first of two distributions from the second, `(n, outcomes)`, in nats."""
    return float((first.exp() * (first - second)).sum(-1).double().mean())


def attack(findings: Findings, name: str, model: nn.Module, plan: Plan, log: Log) -> None:
    """Do everything that the plan has to one anchor. The model is as it was afterwards."""
    material = findings.material
    findings.losses[name] = Losses.of(material, model)
    findings.add("behaviour", name, findings.losses[name].forget)
    findings.compare(name, model)
    if plan.calibration:
        count = min(max(plan.examples), len(material.own))
        biased = calibrated(material, model, count, plan.calibration, plan.budget.batch)
        findings.add("calibrated_loss", name, material.each(biased, FORGET, TEST))
    for bits in plan.bits:
        findings.add(f"quantised_{bits}_bit", name, changed(material, model, [partial(rounded, bits=bits)]))
    if plan.noise:
        shakes = [partial(shaken, size=size, seed=material.seed) for size in plan.noise]
        findings.add("weight_noise", name, changed(material, model, shakes))
    _probe(findings, name, model, plan)
    for answer in plan.questions.answers(material, model):
        findings.add(answer.axis, name, answer.values, answer.unit, answer.higher, own=True)
    for count in plan.examples:
        _relearn(findings, f"relearn_{count}", name, model, FORGET, count, plan)
    _relearn(findings, "relearn_retain_only", name, model, RETAIN, max(plan.examples), plan)
    if plan.foreign is not None:
        _relearn(findings, "relearn_foreign_only", name, model, FOREIGN, max(plan.examples), plan, plan.foreign)
    _relearn_by_adapter(findings, name, model, plan)
    log(f"audit: attacked {name}")


def _relearn_by_adapter(findings: Findings, name: str, model: nn.Module, plan: Plan) -> None:
    """Relearn with an adapter, if there is `peft` for it."""
    if not plan.adapted:
        findings.untried[LORA] = "audit.adapter_examples names none"
        return
    try:
        own = adapted(model, plan.rank, findings.material.seed)
    except UserError as error:
        findings.untried[LORA] = str(error)
        return
    for count in plan.adapted:
        _relearn(findings, f"relearn_{count}_lora", name, own, FORGET, count, plan)


def _probe(findings: Findings, name: str, model: nn.Module, plan: Plan) -> None:
    material = findings.material
    if not plan.probe_updates:
        return
    points = min(plan.probe_points, len(material.own))
    if isinstance(material, Pictures) and plan.site is not None:
        for kind in probes.CERTIFICATES:
            rates = PROBE_RATES
            values = probes.certified(material, model, plan.site, kind, points, plan.probe_updates, rates)
            findings.add(f"certificate_{kind}", name, values, own=True)
    if isinstance(material, Documents) and isinstance(model, Divided):
        for kind in probes.PROBES:
            values = [
                probes.probed(material, model, kind, points, plan.probe_updates, PROBE_RATES, sample)
                for sample in range(max(2, plan.samples))
            ]
            findings.add(f"probe_{kind}", name, values, "AUROC of right against wrong tokens, 0.5 to 1", higher=True)


def _relearn(
    findings: Findings, axis: str, name: str, model: nn.Module, kind: str, count: int, plan: Plan,
    points: Points | None = None,
) -> None:  # fmt: skip
    """Train on points of a kind at every rate, for each choice of points; the axis has the curve's mean height."""
    material, values, curves = findings.material, list[float](), list[Curve]()
    for sample in range(plan.samples):
        batches = prepared(points or material, kind, count, sample, plan.budget)
        tried = [attempt(material, model, batches, rate, plan.budget) for rate in plan.budget.rates]
        best = chosen(tried)
        values.append(area(best.test))
        curves.append(best.test)
        findings.attempts += [_row(axis, name, sample, each, each is best) for each in tried]
    findings.add(axis, name, values)
    means = [(own[0][0], math.fsum(loss for _, loss in own) / len(own)) for own in zip(*curves, strict=True)]
    findings.curves.setdefault(axis, {})[name] = means


def _row(axis: str, anchor: str, sample: int, tried: Attempt, best: bool) -> dict[str, Any]:
    lowest = min((loss for _, loss in tried.validation if math.isfinite(loss)), default=math.nan)
    numbers = {"validation": lowest, "test": tried.test[-1][1], "retain": tried.retain}
    return {
        "attack": axis, "anchor": anchor, "sample": sample, "rate": tried.rate, "chosen": best,
        "diverged": tried.diverged,
        **{key: round(value, 6) if math.isfinite(value) else None for key, value in numbers.items()},
    }  # fmt: skip


def compared(findings: Findings) -> Mapping[str, Mapping[str, list[float]]]:
    """Return the recovered shares by axis and anchor, with only the anchors that have them."""
    names = [name for name in findings.losses if name != TWIN]
    return {
        axis.name: {name: shares for name in names if (shares := axis.shares(name))}
        for axis in findings.axes()
        if INTACT in axis.values or axis.name not in findings.own_gaps
    }
