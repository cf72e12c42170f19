"""Train the whole model on some groups before the step `train`: the model that adapters are then added to."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch

from gradroute.config.limits import Between, one_of, require
from gradroute.config.schema import Config
from gradroute.data.text.corpora import some
from gradroute.models.adapters import activate, adapters_in
from gradroute.steps.base import RunState, Step
from gradroute.steps.tuning import plain_probe, require_language
from gradroute.tasks.base import Task
from gradroute.training.training import Training


@dataclass(kw_only=True)
class Pretrain(Step):
    """Train all weights of the model itself on the documents of groups; adapters compute nothing yet and stay.

    Documents are chosen by the group's rule, whether or not they carry its label.

    Args:
        group: whose documents to train on, or a list of groups.
        epochs: passes over them.
        rate: learning rate, as a share of `trainer.lr`.
    """

    group: str | Sequence[str]
    epochs: Annotated[int, Between(1, 100_000)] = 1
    rate: Annotated[float, Between(1e-6, 100)] = 1.0

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group, or none."""
        require(bool(self.groups), "pretrain.group", self.group, "a group, or a list of groups")
        for name in self.groups:
            one_of("pretrain.group", name, tuple(config.routing.groups))

    @property
    def groups(self) -> list[str]:
        """The groups whose documents are trained on."""
        return [self.group] if isinstance(self.group, str) else list(self.group)

    def prepare(self, task: Task) -> None:
        """Raise UserError for a task that is not a language model's."""
        require_language(task, "pretrain")

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training; none if another run's is reused, or it is done."""
        if run.donor or run.trainings_done:
            return
        if run.fit is None:
            run.folder.keep(run.task.kept())  # before the first checkpoint, which needs them
        yield from self.trainings(run)

    def trainings(self, run: RunState) -> Iterator[Training]:
        """Yield the training; afterwards, only the adapters can be trained, if there are any."""
        task = require_language(run.task, "pretrain")
        numbers = torch.tensor([task.names.index(name) for name in self.groups])
        own = torch.nonzero(torch.isin(task.train_groups.cpu(), numbers)).flatten().tolist()
        documents, given = some(task.data.train, own, task.data.length), run.config.trainer
        trainer = replace(given, epochs=self.epochs, lr=given.lr * self.rate, batches="mixed", compile=False)
        adapters, model = adapters_in(task.model), task.model
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(not adapters or "lora_" not in name)
        probe = plain_probe("pretrain", model, task, "+".join(self.groups), documents, trainer)
        yield run.training(probe, on_epoch=lambda epoch, step, means: run.progress.epoch(epoch, self.epochs, means))
        if adapters:
            activate(model)
