"""The step `unlearn` by UNDO: add noise to an unlearned model, and distil its outputs into the noisy copy."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import nn

from gradroute.config.limits import Between, require
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.steps.base import RunState, Step
from gradroute.steps.tuning import require_language
from gradroute.steps.unlearn import Unlearn
from gradroute.steps.unlearning_losses import DistillationObjective
from gradroute.tasks.base import Task
from gradroute.tasks.language import LanguageModelling
from gradroute.training.training import Training


@torch.no_grad()
def add_noise(model: nn.Module, alpha: float, beta: float, seed: int) -> None:
    """Replace each parameter by `(1 - alpha) * parameter + alpha * beta * noise`, in place.

    The noise is Xavier's uniform initialisation; parameters of one dimension get none, and only shrink. It is drawn on
    the CPU, so that it is the same on every device.
    """
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.mul_(1 - alpha)
        if parameter.dim() > 1:
            noise = nn.init.xavier_uniform_(torch.empty(parameter.shape), generator=generator)
            parameter.add_(noise.to(parameter), alpha=alpha * beta)


@dataclass(kw_only=True)
class Undo(Unlearn):
    """Unlearn, noise, distil on outputs (UNDO; Lee et al. 2025, arXiv 2506.06278).

    A teacher is unlearned by another method, with a share of the updates. The student is the teacher with noise; with
    the other updates it learns the teacher's outputs on the training documents.

    Args:
        group: the forget group.
        teacher: the other method, a component with its arguments; null for the trained or ablated model as it is.
        share: share of `trainer.unlearn_steps` that the teacher gets.
        alpha, beta: see `add_noise`. UNDO uses alpha from 0.1 to 0.8 and beta 0.1.
        retain: weight of the divergence on other tokens; 1 is half and half, as in UNDO.
        rate: learning rate of the student, as a share of `trainer.lr`.
    """

    teacher: Step | None = None
    share: Annotated[float, Between(0, 1)] = 0.5
    alpha: Annotated[float, Between(0, 1)] = 0.4
    beta: Annotated[float, Between(0, 10)] = 0.1

    def check(self, config: Config) -> None:
        """Raise UserError as `Unlearn` does, and for a teacher of another kind or group, or without updates."""
        super().check(config)
        if self.teacher is None:
            return
        if not isinstance(self.teacher, Unlearn) or isinstance(self.teacher, Undo):
            right = "null, or another method of unlearn, such as {_target_: gradroute.steps.unlearn.MaxEntropy, …}"
            raise UserError(f"unlearn.teacher: must be {right}")
        self.teacher.check(config)
        group = self.teacher.group
        require(group == self.group, "unlearn.teacher.group", group, f"unlearn.group={self.group}")
        first, then = self.updates(config)
        right = f"such that teacher and student both get some of trainer.unlearn_steps={first + then}"
        require(first > 0 and then > 0, "unlearn.share", self.share, right)

    def prepare(self, task: Task) -> None:
        """Raise UserError for a teacher that does not fit the model."""
        super().prepare(task)
        if self.teacher is not None:
            self.teacher.prepare(task)

    def updates(self, config: Config) -> tuple[int, int]:
        """Return the numbers of updates of the teacher and of the student."""
        updates = config.trainer.unlearn_steps or 0
        first = 0 if self.teacher is None else round(self.share * updates)
        return first, updates - first

    def objective(self, task: LanguageModelling, model: nn.Module) -> DistillationObjective:
        """Return the loss of a student whose teacher is the trained or ablated model."""
        return self.distillation(task, model, task.left())

    def distillation(self, task: LanguageModelling, student: nn.Module, teacher: nn.Module) -> DistillationObjective:
        """Return the loss of a student of this teacher."""
        length = task.data.length
        return DistillationObjective(student, teacher, self.group, self.number(task), self.retain, length)

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield the training of the teacher, if it has one, and then that of the student, the model `unlearned`."""
        task, seed = require_language(run.task, "unlearn"), run.config.seed
        model = task.made.get("unlearned") or task.make("unlearned")
        first, then = self.updates(run.config)
        teacher = run.module("teacher", task.left) if self.teacher else task.left()
        if isinstance(self.teacher, Unlearn) and run.trainings_done == 0:
            yield self.teacher.training(run, self.teacher.objective(task, teacher), first, "unlearn teacher")
        if run.fit is None:  # else the checkpoint has the student
            model.load_state_dict(teacher.state_dict())
            add_noise(model, self.alpha, self.beta, seed)
        yield self.training(run, self.distillation(task, model, teacher), then, "unlearn student")
        run.modules.pop("teacher", None)  # no later step needs it
