"""The step `audit`: does the ablated model still hold what the group taught, or does it only hide it?

It trains anchors, or reuses those of another audit, attacks all alike, and gives one verdict for each axis.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Annotated, ClassVar, Literal

from torch import nn

from gradroute.audit.anchors import Anchor, ablated, config_of, intact, placebo, plain, shares_of_groups, trained
from gradroute.audit.attacks import Budget, suppress
from gradroute.audit.findings import Findings, Plan, attack
from gradroute.audit.foreign import Foreign
from gradroute.audit.leakage import exposed, unlabelled_tokens
from gradroute.audit.material import FORGET, TEST, VALIDATION, Documents, Material, material_of
from gradroute.audit.questions import LEAKAGE, Questions
from gradroute.audit.record import Context, recorded, rows_of
from gradroute.config.components import ablated_regions, step_names
from gradroute.config.limits import MANY, Between, Items, Text, one_of, require
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.audits import (
    ANCHORS,
    AUDITED,
    CONTROL,
    FILE,
    INTACT,
    PLACEBO,
    SUPPRESSED,
    TRAINED,
    TWIN,
    USUAL,
)  # fmt: skip
from gradroute.steps.base import RunState, Step
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.training.training import Training
from gradroute.training.weights import read_weights

Count = Annotated[int, Between(1, MANY)]
Some = Annotated[int, Between(0, MANY)]
Rate = Annotated[float, Between(1e-6, 100)]
Bits = Annotated[int, Between(2, 16)]
Size = Annotated[float, Between(1e-6, 10)]
DECADES = 3  # that the rates of an attack must span
EXAMPLES = (4, 16, 64)
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
        adapter_examples: numbers of points to relearn from by a LoRA adapter of `rank`, with `peft`; null is the
            largest of `examples`, and [] none.
        shots: the group's documents in a prompt before another one, at most; 0 prompts with none.
        leakage: shares of the group's documents that plain models are trained on, one each, to say how many forget
            tokens a loss is worth; for language models.
        foreign: a file or folder of texts to relearn from that have nothing to do with the group; null draws words at
            random; for language models.
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
    examples: Annotated[Sequence[Count], Items(1, 16, each_once=True, right="a list of numbers of points")] = EXAMPLES
    samples: Annotated[int, Between(2, 1000)] = 3
    updates: Count = 32
    batch: Count = 16
    rates: Annotated[Sequence[Rate], Items(5, 100, each_once=True)] = RATES
    adapter_examples: Annotated[Sequence[Count], Items(0, 16, each_once=True)] | None = None
    rank: Annotated[int, Between(1, 4096)] = 8
    shots: Annotated[int, Between(0, 1000)] = 4
    leakage: Annotated[Sequence[Annotated[float, Between(0.0001, 0.99)]], Items(0, 16, each_once=True)] = ()
    foreign: Annotated[str, Text("a file or a folder")] | None = None
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
    anchors: Annotated[Sequence[str], Items(0, each_once=True)] = field(default_factory=lambda: list(USUAL))
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

    @property
    def adapted(self) -> tuple[int, ...]:
        """The numbers of points to relearn from by an adapter."""
        return (max(self.examples),) if self.adapter_examples is None else tuple(self.adapter_examples)

    def prepare(self, task: Task) -> None:
        """Raise UserError for a task without attacks, or too few points, before anything is trained."""
        material = material_of(task, self.group, self.points, task.config.seed)
        material.require(max(self.examples), "audit.examples")
        material.require(max(self.adapted, default=0), "audit.adapter_examples")
        if self.foreign is not None:
            self._foreign(material)  # which reads the file

    def run(self, run: RunState) -> Iterable[Training]:
        """Make the anchors, attack them and write the result; the run's own model does not change."""
        task = run.task
        material = material_of(task, self.group, self.points, task.config.seed)
        findings, missing = Findings(material), dict[str, str]()
        anchors = self._made(run, missing)
        plan = self.plan(run, material, anchors)
        findings.untried |= plan.questions.untried
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
        missing |= {name: "not made" for name in USUAL if name not in anchors and name not in missing}
        context = Context(task.config, task.kind, self.group, self.margin, plan, task.config.trainer.lr)
        found = recorded(findings, context, {name: anchor.run for name, anchor in anchors.items()}, missing)
        run.folder.write_json(FILE, found)
        for group, head, axis, metric, value in rows_of(found, self.group):
            run.record("audit", (group, Head(head, axis), metric, value))
        return ()

    def plan(self, run: RunState, material: Material, anchors: Mapping[str, Anchor]) -> Plan:
        """Return what is done to every anchor."""
        lr, task = run.config.trainer.lr, run.task
        budget = Budget(self.updates, self.batch, tuple(rate * lr for rate in self.rates))
        regions = [name for name in ablated_regions(run.config) if name in task.router.regions]
        site = task.router.regions[regions[0]].sites[0] if regions else None
        own = (tuple(self.examples), self.samples, tuple(self.bits), tuple(self.noise))
        baseline = anchors[CONTROL].run if CONTROL in anchors else None
        questions = Questions.of(material, self.shots, self.samples, baseline)
        self._expose(run, material, anchors, questions)
        return Plan(
            budget, *own, self.calibration, self.probe_points, self.probe_updates, site, self.adapted,
            self.rank, questions, self._foreign(material),
        )  # fmt: skip

    def _expose(self, run: RunState, material: Material, anchors: Mapping[str, Anchor], questions: Questions) -> None:
        """Train the models by which leakage is read, and measure them; or note why there are none."""
        if not isinstance(material, Documents) or not self.leakage or TWIN not in anchors:
            questions.untried[LEAKAGE] = "for language models, with shares in audit.leakage and a never-trained model"
            return
        found: list[tuple[int, list[float]]] = [(0, material.each(anchors[TWIN].model, FORGET, TEST))]
        for share in sorted(self.leakage):
            config = exposed(run.config, self.group, share)
            try:
                place = run.anchor(config, self.make)
            except (UserError, FloatingPointError) as error:
                questions.untried[LEAKAGE] = str(error)
                return
            task = LanguageModelling(config, material.task.read)
            read_weights(place, {"model": task.model})
            losses = material.each(plain(task.model), FORGET, TEST)
            found.append((unlabelled_tokens(task, self.group), losses))
        questions.exposed, questions.unlabelled = found, unlabelled_tokens(material.task, self.group)

    def _foreign(self, material: Material) -> Foreign | None:
        """Return foreign documents. Raises: UserError if the file cannot be read, or for images."""
        if not isinstance(material, Documents):
            require(self.foreign is None, "audit.foreign", self.foreign, "null, as it is for language models only")
            return None
        return Foreign(material, self.foreign, max(self.examples), self.samples)

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
        gap = fmean(findings.losses[TWIN].forget) - fmean(findings.losses[INTACT].forget)
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
