"""Train on a few documents after the ablation, and keep the weights with the lowest validation loss (GR App. C).

Every batch has all documents. The validation loss is measured on the data set's validation documents; if it has none,
on the first test documents of each group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.limits import MANY, Between, Items, one_of, require, require_number
from gradroute.config.schema import Config, LossesConfig, TrainerConfig
from gradroute.data.text.corpora import Part, some
from gradroute.errors import UserError
from gradroute.steps.base import RunState, Step
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_objective import NextTokenObjective
from gradroute.tasks.probe import Probe
from gradroute.training.training import Training
from gradroute.training.weights import own_tensors

Count = Annotated[int, Between(1, MANY)]
Rate = Annotated[float, Between(1e-6, 10)]  # a share of trainer.lr


def require_language(task: Task, step: str) -> LanguageModelling:
    """Return the task, which must be a language model's. Raises: UserError."""
    if not isinstance(task, LanguageModelling):
        raise UserError(f"steps: {step} is for language models, not for task={task.kind}")
    return task


def require_updates(config: Config, key: str) -> None:
    """Raise UserError unless `trainer.KEY`, the number of updates of a step, is given."""
    require_number(f"trainer.{key}", getattr(config.trainer, key), 1, MANY, int)


@dataclass(kw_only=True)
class TuningStep(Step):
    """Train on a few documents of a group, all in one batch; each number of documents is a separate training.

    Args:
        group: group whose documents are used.
        documents: numbers of documents.
        rate: constant learning rate, as a share of `trainer.lr`.
        samples: number of random choices of documents.
        every: updates between measurements; there are `trainer.tune_steps` updates.
    """

    group: str
    documents: Annotated[Sequence[Count], Items(1, right="a list of numbers of documents")]
    rate: Rate = 0.1
    samples: Annotated[int, Between(1, 1000)] = 1
    every: Count = 1

    section = "finetune"

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group, a missing number of updates, or a run without `evaluate`."""
        require_updates(config, "tune_steps")
        one_of(f"{self.section}.group", self.group, tuple(config.routing.groups))
        names = step_names(config)
        require("evaluate" in names, "steps", names, f"with evaluate after {self.section}")

    def prepare(self, task: Task) -> None:
        """Raise UserError if the group has too few documents to train on, or none to validate on."""
        language = require_language(task, self.section)
        number = language.names.index(self.group)
        if not bool((language.test_groups == number).any()):
            fault = "has no document to test on, and the weights with the lowest loss there are kept"
            raise UserError(f"{self.section}.group={self.group}: {fault}; use more test documents")
        own = int((language.train_groups == number).sum())
        if max(self.documents) > own:
            fault = f"group '{self.group}' has {own} documents to train on"
            raise UserError(f"{self.section}.documents={list(self.documents)}: {fault}; use at most that many")


@dataclass
class Best:
    """The lowest validation loss of a training so far, its step, and the weights at that step."""

    model: nn.Module
    loss: float = float("inf")
    step: int = -1
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def see(self, step: int, loss: float) -> None:
        """Compare the loss at a step with the lowest so far, and keep the weights if it is lower."""
        if loss < self.loss:
            self.loss, self.step = loss, step
            for name, tensor in own_tensors(self.model).items():
                if name in self.weights:
                    self.weights[name].copy_(tensor)  # not a second set beside the first
                else:
                    self.weights[name] = tensor.clone()

    def restore(self) -> None:
        """Set the model to these weights."""
        self.model.load_state_dict(self.weights, strict=False)  # of tied parameters, there is one

    def state_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return {"loss": self.loss, "step": self.step, "weights": self.weights}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state from a checkpoint."""
        self.loss, self.step, weights = state["loss"], state["step"], state["weights"]
        self.weights = {name: weights[name] for name in own_tensors(self.model) if name in weights}


def plain_probe(
    title: str, model: nn.Module, task: LanguageModelling, group: str, part: Part, trainer: TrainerConfig
) -> Probe:
    """Return the training of a model on documents as one group, which is called `group`, without routes."""
    rows = part.packed
    tensors = [t.to(task.device) for t in (rows.tokens, rows.targets, rows.documents)]
    tensors += [torch.zeros_like(tensors[0])] * 2  # one group, and nothing is routed
    objective = NextTokenObjective(model, [group], LossesConfig(), length=task.data.length)
    return Probe(title, objective, lambda chosen: tuple(t[chosen] for t in tensors), len(rows), trainer)


class Tuning:
    """One training on documents after the ablation; `see` measures before it and after updates."""

    def __init__(
        self, run: RunState, model: nn.Module, tune: TuningStep, documents: int, sample: int, head: str,
        region: str | None = None, start: Mapping[str, float] | None = None,
    ) -> None:  # fmt: skip
        """Choose the documents to train on; `start` has the validation losses before it, if they are known."""
        self.task = task = require_language(run.task, tune.section)
        self.run, self.model, self.tune, self.head = run, model, tune, Head(head, region or f"sample_{sample}")
        own = torch.nonzero(task.train_groups == task.names.index(tune.group)).flatten()
        order = torch.Generator().manual_seed(task.config.seed * 1000 + sample)
        chosen = own[torch.randperm(len(own), generator=order)[:documents]].tolist()
        self.part = some(task.data.train, chosen, task.data.length)
        self.best, self.steps, self.start = Best(model), run.config.trainer.tune_steps or 0, start

    @property
    def probe(self) -> Probe:
        """The objective and its data, with all documents in every batch."""
        task, size = self.task, len(self.part.packed)
        lr = task.config.trainer.lr * self.tune.rate
        trainer = replace(
            task.config.trainer, epochs=self.steps, batch_size=size, lr=lr, schedule="constant", warmup_steps=0
        )
        return plain_probe(
            f"{self.head.name} {self.head.region}", self.model, task, self.tune.group, self.part, trainer
        )

    def see(self, step: int) -> None:
        """Measure and record the validation loss, if it is due, and keep the best weights."""
        if step % self.tune.every and step != self.steps:
            return
        validation = self.task.validation
        known = self.start if step == 0 else None
        found = known or self.task.group_losses(self.model, validation.part, validation.groups)
        for group, value in found.items():
            self.run.record("validation", (group, self.head, "cross_entropy", value), step)
        self.best.see(step, found[self.tune.group])

    def training(self) -> Training:
        """Return the training, after recording its start if it is new."""
        if self.run.fit is None:
            self.see(0)
        return self.run.training(self.probe, on_epoch=lambda epoch, step, means: self.see(epoch), watcher=self.best)
