"""After the ablation: fine-tuning on a few documents, and relearning on a few of what was to be forgotten (GR App. C).

Both train on all of their documents at once. What is measured on the way is measured on the first test documents of
each group, which also choose the step that counts, that of the lowest loss, as published; of relearning it is measured
on all test documents.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from statistics import mean
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradroute.config.language_schema import TuneConfig
from gradroute.config.schema import LossesConfig
from gradroute.data.text.corpora import some
from gradroute.errors import UserError
from gradroute.reporting.language_tables import RELEARNED
from gradroute.tasks.base import Probe
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.training.objectives import NextTokenObjective

if TYPE_CHECKING:
    from gradroute.running.run import Run
    from gradroute.training.fit import Task

VALIDATED = 50  # test documents of each group


@dataclass
class Best:
    """The lowest loss of a training so far, the step it was at, and the weights there."""

    model: nn.Module
    loss: float = float("inf")
    step: int = -1
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, step: int, loss: float) -> None:
        """Note the loss at a step."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            self.weights = {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()}

    def state_dict(self) -> dict[str, Any]:
        """What to go on from."""
        return {"loss": self.loss, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from it."""
        self.loss, self.step, self.weights = state["loss"], state["step"], dict(state["weights"])


class Tuning:
    """One training after the ablation; `see` is called before it and after every update."""

    def __init__(self, run: "Run", model: nn.Module, tune: TuneConfig, documents: int, sample: int, head: str) -> None:
        """Choose the documents. Raises: UserError if the group has not so many."""
        self.problem: LanguageModelling = run.problem  # type: ignore[assignment] # by the configuration's checks
        self.run, self.model, self.tune, self.head = run, model, tune, Head(head, f"sample_{sample}")
        problem = self.problem
        own = torch.nonzero(problem.train_groups == problem.names.index(tune.group)).flatten()
        if len(own) < documents:
            raise UserError(f"group '{tune.group}' has {len(own)} documents, not {documents}; ask for fewer")
        order = torch.Generator().manual_seed(problem.config.seed * 1000 + sample)
        chosen = own[torch.randperm(len(own), generator=order)[:documents]].tolist()
        self.part = some(problem.data.train, chosen, problem.data.length)
        first = [torch.nonzero(problem.test_groups == i).flatten()[:VALIDATED] for i in range(len(problem.names))]
        validated = torch.cat(first)
        self.validation = some(problem.data.test, validated.tolist(), problem.data.length)
        self.validation_groups = problem.test_groups[validated]
        self.best, self.steps = Best(model), run.config.trainer.tune_steps or 0

    @property
    def probe(self) -> Probe:
        """What to train, all documents in every batch."""
        problem, rows = self.problem, self.part.packed
        lr, size = problem.config.trainer.lr * self.tune.rate, len(rows)
        trainer = replace(
            problem.config.trainer, epochs=self.steps, batch_size=size, lr=lr, schedule="constant", warmup_steps=0
        )
        tensors = [t.to(problem.device) for t in (rows.tokens, rows.targets, rows.documents)]
        tensors += [torch.zeros_like(tensors[0])] * 2  # one group, and nothing is routed
        objective = NextTokenObjective(self.model, [self.tune.group], LossesConfig())
        title = f"{self.head.name} {self.head.region}"
        return Probe(title, objective, lambda chosen: tuple(t[chosen] for t in tensors), len(rows), trainer)

    def see(self, step: int) -> None:
        """Measure, if it is time to, record and remember the best."""
        if step % self.tune.every and step != self.steps:
            return
        found = self.problem.group_losses(self.model, self.validation, self.validation_groups)
        for group, value in found.items():
            self.run.record("validation", (group, self.head, "cross_entropy", value), step)
        self.best.see(step, found[self.tune.group])

    def task(self) -> "Task":
        """The training itself."""
        if self.run.fit is None:
            self.see(0)
        return self.run.task(self.probe, on_epoch=lambda epoch, step, means: self.see(epoch), watcher=self.best)


def finetuning(run: "Run") -> Iterator["Task"]:
    """Fine-tune what the ablation left; its best step is the model `finetuned` from then on."""
    problem, tune = run.problem, run.config.finetune
    assert isinstance(problem, LanguageModelling) and tune is not None  # by the configuration's checks
    model = problem.made.get("finetuned") or problem.make("finetuned")
    tuning = Tuning(run, model, tune, tune.documents[0], 0, "model_finetuned")
    yield tuning.task()
    model.load_state_dict(tuning.best.weights)


def relearning(run: "Run") -> Iterator["Task"]:
    """Relearn from what the steps before left, with other documents each time."""
    problem, tune = run.problem, run.config.relearn
    assert isinstance(problem, LanguageModelling) and tune is not None  # by the configuration's checks
    plan = [(documents, sample) for documents in tune.documents for sample in range(tune.samples)]
    for documents, sample in plan[run.tasks_done :]:
        model = problem.made.get("relearning") or problem.make("relearning")
        name = f"{RELEARNED}{documents}"
        tuning = Tuning(run, model, tune, documents, sample, name)
        yield tuning.task()
        model.load_state_dict(tuning.best.weights)
        for measured in problem.measured(model, tuning.head):
            run.record("sample", measured, tuning.best.step)
        del problem.made["relearning"]
        if sample == tune.samples - 1:
            for (group, metric), values in _samples(run, name).items():
                run.record("test", (group, Head(name, "all"), metric, mean(values)))


def _samples(run: "Run", head: str) -> dict[tuple[str, str], list[float]]:
    """What was measured of a relearning with each sample of documents, by group and metric."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in run.folder.rows:
        if (row["split"], row["head"]) == ("sample", head):
            found.setdefault((row["group"], row["metric"]), []).append(row["value"])
    return found
