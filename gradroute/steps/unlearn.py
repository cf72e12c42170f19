"""The step `unlearn`, a baseline that changes the trained or ablated model: RMU, maximum entropy, gradient difference.

`unlearn._target_` names the method, RMU if it is left out. Every method makes `trainer.unlearn_steps` updates. Undo is
in `gradroute.steps.undo`.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from gradroute.config.limits import WEIGHT, WIDTH, Between, Items, Text, one_of, require
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing.regions import matching
from gradroute.steps.base import RunState, Step
from gradroute.steps.misdirection import MisdirectionObjective, direction, mean_norm, outgoing
from gradroute.steps.tuning import Rate, require_language, require_updates
from gradroute.steps.unlearning_losses import DifferenceObjective, EntropyObjective, ForgetRetainObjective
from gradroute.tasks.base import Task
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.probe import Probe
from gradroute.training.training import Training

MEASURED = 256  # training rows from which RMU measures the residual stream's norm
Weight = Annotated[float, Between(0, WEIGHT)]
Positive = Annotated[float, Between(1e-6, WEIGHT)]


@dataclass(kw_only=True)
class Unlearn(Step):
    """Base class of the methods: train a copy of the trained, or ablated, model, which becomes the model `unlearned`.

    Tokens of documents without a label count as retained. A subclass defines `objective`.

    Args:
        group: the forget group.
        retain: weight of the loss on all other tokens.
        rate: constant learning rate, as a share of `trainer.lr`.
    """

    group: str
    retain: Weight = 1.0
    rate: Rate = 1.0

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group or a missing number of updates."""
        require_updates(config, "unlearn_steps")
        one_of("unlearn.group", self.group, tuple(config.routing.groups))

    def prepare(self, task: Task) -> None:
        """Raise UserError for a task that is no language model's."""
        require_language(task, "unlearn")

    @abstractmethod
    def objective(self, task: LanguageModelling, model: nn.Module) -> ForgetRetainObjective:
        """Return the loss of a model that starts from the trained or ablated one. Raises: UserError."""

    def number(self, task: LanguageModelling) -> int:
        """Return the number of the forget group."""
        return task.names.index(self.group)

    def training(self, run: RunState, objective: ForgetRetainObjective, updates: int, title: str) -> Training:
        """Return a training of a number of updates with full batches of training documents."""
        task, config = require_language(run.task, "unlearn"), run.config.trainer
        trainer = replace(config, epochs=1, lr=config.lr * self.rate, schedule="constant", warmup_steps=0)
        if objective.note:
            run.folder.log(f"{title}: {objective.note}")
        probe = Probe(
            title,
            objective,
            lambda chosen: task.batch(chosen % task.points),  # a number of updates with full batches, not epochs
            updates * config.batch_size,
            trainer,
        )
        return run.training(probe, on_epoch=lambda epoch, step, means: run.progress.epoch(epoch, 1, means))

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield the training of the model `unlearned`."""
        task = require_language(run.task, "unlearn")
        model = task.made.get("unlearned") or task.make("unlearned")
        yield self.training(run, self.objective(task, model), run.config.trainer.unlearn_steps or 0, "unlearn")


@dataclass(kw_only=True)
class RMU(Unlearn):
    """Representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218), a baseline of GR App. C.

    It moves the residual stream on the forget group's tokens to a random target, and keeps it in place on all others.

    Args:
        group, rate: see `Unlearn`.
        layers: layers in which the MLP's outgoing weights are trained.
        site: module whose output is the residual stream; null is the last of these layers.
        norm: L2 norm of the target; null if `norm_factor` is given.
        norm_factor: the same as a multiple of the residual stream's own mean L2 norm, measured before the step.
        retain: weight of keeping the residual stream on other tokens.
    """

    layers: Annotated[
        Sequence[Annotated[int, Between(0, WIDTH)]], Items(1, each_once=True, right="a list of layers, such as [0,1,2]")
    ]
    site: Annotated[str | None, Text("a module's name, such as blocks.2")] = None
    norm: Positive | None = 100.0
    norm_factor: Positive | None = None
    retain: Weight = 200.0

    def check(self, config: Config) -> None:
        """Raise UserError as `Unlearn` does, and unless one of `norm` and `norm_factor` is given."""
        super().check(config)
        one = (self.norm is None) != (self.norm_factor is None)
        require(one, "unlearn.norm_factor", self.norm_factor, "given if, and only if, unlearn.norm is null")

    def prepare(self, task: Task) -> None:
        """Raise UserError for a site or layers that do not fit the model."""
        language = require_language(task, "unlearn")
        batch = language.batch(torch.arange(min(2, language.points), device=language.device))
        try:
            self.objective(language, language.left())(*batch)
        except (RuntimeError, IndexError) as error:
            fault = str(error).partition("\n")[0]
            raise UserError(
                f"unlearn.site={self.site}: is not the residual stream ({fault}); use a block, such as blocks.2"
            ) from None

    def objective(self, task: LanguageModelling, model: nn.Module) -> MisdirectionObjective:
        """Return the loss of a model that starts from the trained or ablated one. Raises: UserError."""
        trained = outgoing(model, list(self.layers))
        given = self.site or model.place("residual", max(self.layers)).module  # type: ignore[operator]
        site, *more = matching(given, [name for name, _ in model.named_modules() if name], "unlearn.site:")
        if more:
            raise UserError(f"unlearn.site={self.site}: matches {1 + len(more)} modules; name one, such as {site}")
        width = next(iter(trained.values())).shape[0]  # from units, to the residual stream
        frozen, norm = task.left(), self.norm
        if norm is None:
            rows = torch.arange(min(MEASURED, task.points), device=task.device).split(task.config.trainer.batch_size)
            norm = (self.norm_factor or 0) * mean_norm(frozen, site, map(task.batch, rows))
        target = direction(width, norm, task.config.seed).to(task.device)
        objective = MisdirectionObjective(
            model, frozen, site, trained, self.group, self.retain, self.number(task), target
        )
        objective.note = f"the target at {site} has norm {norm:.4g}"
        return objective


@dataclass(kw_only=True)
class MaxEntropy(Unlearn):
    """Make the next token's distribution uniform on the forget group's tokens, and keep training on all others.

    All parameters are trained. The forget loss is the KL divergence from the uniform distribution, the logarithm of the
    vocabulary minus the entropy; the other loss is the cross-entropy. This is MaxEnt of GRAM (arXiv 2607.08077, App. A)
    without its early stop, so that every method has the same number of updates.
    """

    retain: Weight = 20.0
    rate: Rate = 0.1

    def objective(self, task: LanguageModelling, model: nn.Module) -> EntropyObjective:
        """Return the loss of a model that starts from the trained or ablated one."""
        return EntropyObjective(model, self.group, self.number(task), self.retain, length=task.data.length)


@dataclass(kw_only=True)
class GradientDifference(Unlearn):
    """Raise the cross-entropy on the forget group's tokens while training on all others (Liu et al. 2022).

    All parameters are trained. The cross-entropy of a forget token counts up to that of a uniform guess, the logarithm
    of the vocabulary; beyond it the token has no gradient, so that the loss is bounded.
    """

    retain: Weight = 2.0
    rate: Rate = 0.1

    def objective(self, task: LanguageModelling, model: nn.Module) -> DifferenceObjective:
        """Return the loss of a model that starts from the trained or ablated one."""
        return DifferenceObjective(model, self.group, self.number(task), self.retain, task.data.length)
