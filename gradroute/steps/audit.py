"""The step `audit`: does the ablated model still hold what the group taught, or does it only hide it?

It trains anchors, or reuses those of another audit, attacks all alike, and gives one verdict for each axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from torch import nn

from gradroute.audit.anchors import Anchor, ablated, config_of, intact, placebo, shares_of_groups, trained
from gradroute.audit.attacks import Budget, suppress
from gradroute.audit.findings import Findings, Plan, attack
from gradroute.audit.material import FORGET, TEST, VALIDATION, material_of
from gradroute.audit.record import Context, recorded, rows_of
from gradroute.config.components import ablated_regions, step_names
from gradroute.config.limits import MANY, Between, Items, one_of, require
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.audits import ANCHORS, AUDITED, FILE, INTACT, PLACEBO, SUPPRESSED, TRAINED, TWIN
from gradroute.steps.base import RunState, Step
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.training.training import Training

Count = Annotated[int, Between(1, MANY)]
Some = Annotated[int, Between(0, MANY)]
Rate = Annotated[float, Between(1e-6, 100)]
Bits = Annotated[int, Between(2, 16)]
Size = Annotated[float, Between(1e-6, 10)]
DECADES = 3  # that the rates of an attack must span
RATES = (0.003, 0.02, 0.1, 0.5, 3.0)
SPREAD = 1e-9  # relative, by which a ratio of rates may miss the decades
TOLERANCE = 0.5  # how near the suppressed model must be to the audited one's loss, in margins


@dataclass(kw_only=True)
class Audit(Step):
    """Audit the ablated model, and write `audit.json`.

    Args:
        group: whose knowledge is audited.
        examples: numbers of the group's training points to relearn from. samples: choices of them.
        updates, batch: updates of each trained attack, and training points in an update, at most.
        rates: learning rates of these attacks, as shares of `trainer.lr`; each anchor is judged at its own best.
        points: points of each kind on which losses are measured, at most.
        margin: of equivalence, as a share of what the intact model knows beyond the never-trained one.
        bits: of the weights' rounding. noise: standard deviations, relative to each matrix's own.
        calibration: updates of a bias on the outputs; 0 leaves it out.
        probe_points, probe_updates: training points and updates of probes and certificates; 0 updates leave them out.
        suppress_updates, suppress_retain: updates that make the suppressed control, at most at each rate, and the
            weight of the other points' loss there.
        suppress_to: whose loss on the group the suppressed control gets, the audited or the never-trained model's.
        anchors: which are made. make: whether missing ones are trained; else only those of earlier audits are used.
    """

    group: str
    examples: Annotated[Sequence[Count], Items(1, 16, each_once=True, right="a list of numbers of points")] = (
        4,
        16,
        64,
    )
    samples: Annotated[int, Between(2, 1000)] = 3
    updates: Count = 32
    batch: Count = 16
    rates: Annotated[Sequence[Rate], Items(5, 100, each_once=True)] = RATES
    points: Annotated[int, Between(5, MANY)] = 200
    margin: Annotated[float, Between(0.001, 1)] = 0.1
    bits: Annotated[Sequence[Bits], Items(0, 16, each_once=True)] = (8, 6, 4)
    noise: Annotated[Sequence[Size], Items(0, 16, each_once=True)] = (0.03, 0.1, 0.3)
    calibration: Some = 50
    probe_points: Count = 256
    probe_updates: Some = 100
    suppress_updates: Count = 100
    suppress_retain: Annotated[float, Between(0, 1000)] = 1.0
    suppress_to: Literal["audited", "never_trained"] = "audited"
    anchors: Annotated[Sequence[str], Items(0, each_once=True)] = field(default_factory=lambda: list(ANCHORS))
    make: bool = True

    units: ClassVar[Mapping[str, str]] = {
        "recovered_share": "share of what the intact model knows beyond a never-trained one",
        "divergence": "nats, KL divergence from the never-trained model",
    }

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group or anchor, rates that are too near, or steps that do not fit."""
        one_of("audit.group", self.group, tuple(config.routing.groups))
        for name in self.anchors:
            one_of("audit.anchors", name, tuple(ANCHORS))
        names = step_names(config)
        wide = max(self.rates) / min(self.rates) >= 10**DECADES * (1 - SPREAD)
        require(
            wide, "audit.rates", list(self.rates), f"rates of which the largest is {10**DECADES} times the smallest"
        )
        require("ablate" in names, "steps", names, "with ablate before audit, which audits the ablated model")
        require("evaluate" in names, "steps", names, "with evaluate after audit")
        changing = [name for name in names if name in ("unlearn", "finetune")]
        require(not changing, "steps", names, f"without {' and '.join(changing)}: audit compares ablated models only")
        whole = config.ablation["region"] is not None or len(config.routing.regions) == 1
        require(whole, "ablation.region", None, "one region, or a list, that the audit is about")
        left = self.group not in config.routing.left_out
        require(left, "routing.left_out", config.routing.left_out, f"without the audited group '{self.group}'")
        require(len(config.routing.groups) > 1, "routing.groups", list(config.routing.groups), "at least two groups")

    def prepare(self, task: Task) -> None:
        """Raise UserError for a task without attacks, or too few points, before anything is trained."""
        material_of(task, self.group, self.points, task.config.seed).require(max(self.examples), "audit.examples")

    def run(self, run: RunState) -> Iterable[Training]:
        """Make the anchors, attack them and write the result; the run's own model does not change."""
        task = run.task
        material = material_of(task, self.group, self.points, task.config.seed)
        plan = self.plan(run)
        findings, missing = Findings(material), dict[str, str]()
        anchors = self._made(run, missing)
        ordered = [name for name in (TWIN, INTACT, AUDITED) if name in anchors]
        for name in [*ordered, *(name for name in anchors if name not in ordered)]:
            attack(findings, name, anchors[name].model, plan, run.folder.log)
        if SUPPRESSED in self.anchors and {TWIN, INTACT} <= anchors.keys():
            anchor, note = self._suppressed(run, findings, anchors[self.suppress_to].model, plan)
            if anchor is None:
                missing[SUPPRESSED] = note
            else:
                anchors[SUPPRESSED] = anchor
                attack(findings, SUPPRESSED, anchor.model, plan, run.folder.log)
        missing |= {name: "not made" for name in ANCHORS if name not in anchors and name not in missing}
        context = Context(task.config, task.kind, self.group, self.margin, plan, task.config.trainer.lr)
        found = recorded(findings, context, {name: anchor.run for name, anchor in anchors.items()}, missing)
        run.folder.write_json(FILE, found)
        for group, head, axis, metric, value in rows_of(found, self.group):
            run.record("audit", (group, Head(head, axis), metric, value))
        return ()

    def plan(self, run: RunState) -> Plan:
        """Return what is done to every anchor."""
        lr, task = run.config.trainer.lr, run.task
        budget = Budget(self.updates, self.batch, tuple(rate * lr for rate in self.rates))
        regions = [name for name in ablated_regions(run.config) if name in task.router.regions]
        site = task.router.regions[regions[0]].sites[0] if regions else None
        own = (tuple(self.examples), self.samples, tuple(self.bits), tuple(self.noise))
        return Plan(budget, *own, self.calibration, self.probe_points, self.probe_updates, site)

    def _made(self, run: RunState, missing: dict[str, str]) -> dict[str, Anchor]:
        """Return the audited model and the anchors by name, without the suppressed one; note why others are missing."""
        task = run.task
        found = {AUDITED: Anchor(AUDITED, ablated(task))}
        if INTACT in self.anchors:
            found[INTACT] = Anchor(INTACT, intact(task))
        if PLACEBO in self.anchors:
            model = placebo(task)
            if model is None:
                missing[PLACEBO] = "the ablated region is of parameters, or its sites have no other units"
            else:
                found[PLACEBO] = Anchor(PLACEBO, model)
        shares = shares_of_groups(task)
        for kind in [kind for kind in TRAINED if kind in self.anchors]:
            config = config_of(kind, run.config, self.group, shares)
            try:
                place = run.anchor(config, self.make)
                found[kind] = trained(kind, config, place, task.read)
            except (UserError, FloatingPointError) as error:
                missing[kind] = str(error)
                run.folder.log(f"audit: no anchor {kind}: {error}")
        return found

    def _suppressed(self, run: RunState, findings: Findings, like: nn.Module, plan: Plan) -> tuple[Anchor | None, str]:
        """Return the intact model, made to hide the group as much as the model `like`, or None and why it was not."""
        model, material = intact(run.task), findings.material
        target = material.measure(like, FORGET, VALIDATION)
        gap = _mean(findings.losses[TWIN].forget) - _mean(findings.losses[INTACT].forget)
        start = material.measure(model, FORGET, VALIDATION)
        if not gap > 0 or target <= start:
            return None, "there was nothing to hide: the ablation, or the group's data, did not change the loss"
        budget = Budget(self.suppress_updates, plan.budget.batch, plan.budget.rates)
        tolerance = TOLERANCE * self.margin * gap
        done, updates, rate = suppress(material, model, target, budget, self.suppress_retain, tolerance)
        if not done:
            return None, f"the loss of {target:.4g} was not reached in {self.suppress_updates} updates at any rate"
        at = material.measure(model, FORGET, TEST)
        run.folder.log(f"audit: suppressed in {updates} updates at {rate:g}, test loss {at:.4g}")
        return Anchor(SUPPRESSED, model), ""


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
