"""RMU, representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218), as a baseline (GR App. C)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from torch import nn

from gradroute.config.limits import WEIGHT, WIDTH, Between, Items, Text, one_of
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing.regions import matching
from gradroute.steps.base import RunState, Step
from gradroute.steps.misdirection import MisdirectionObjective, direction, outgoing
from gradroute.steps.tuning import Rate, require_language, require_updates
from gradroute.tasks.base import Probe, Task
from gradroute.tasks.language import LanguageModelling
from gradroute.training.fit import Training


@dataclass(kw_only=True)
class RMU(Step):
    """Move the residual stream on the forget group's tokens to a random target, and keep it in place on all others.

    Args:
        group: the forget group.
        layers: layers in which the MLP's outgoing weights are trained.
        site: module whose output is the residual stream; null is the last of these layers.
        norm: L2 norm of the target.
        retain: weight of keeping the residual stream on other tokens.
        rate: learning rate as a share of `trainer.lr`; there are `trainer.unlearn_steps` updates.
    """

    group: str
    layers: Annotated[
        Sequence[Annotated[int, Between(0, WIDTH)]], Items(1, each_once=True, right="a list of layers, such as [0,1,2]")
    ]
    site: Annotated[str | None, Text("a module's name, such as blocks.2")] = None
    norm: Annotated[float, Between(1e-6, WEIGHT)] = 100.0
    retain: Annotated[float, Between(0, WEIGHT)] = 200.0
    rate: Rate = 1.0

    def check(self, config: Config) -> None:
        """Raise UserError for an unknown group or a missing number of updates."""
        require_updates(config, "unlearn_steps")
        one_of("unlearn.group", self.group, tuple(config.routing.groups))

    def prepare(self, task: Task) -> None:
        """Raise UserError for a site or layers that do not fit the model."""
        language = require_language(task, "unlearn")
        objective = self.objective(language, language.left())
        batch = language.batch(torch.arange(min(2, language.points), device=language.device))
        try:
            objective(*batch)
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
        target = direction(width, self.norm, task.config.seed).to(task.device)
        number = task.names.index(self.group)
        return MisdirectionObjective(model, task.left(), site, trained, self.group, self.retain, number, target)

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield the training of the trained, or ablated, model, which becomes the model `unlearned`."""
        task, config = require_language(run.task, "unlearn"), run.config.trainer
        model = task.made.get("unlearned") or task.make("unlearned")
        updates = config.unlearn_steps or 0
        trainer = replace(config, epochs=1, lr=config.lr * self.rate, schedule="constant", warmup_steps=0)
        probe = Probe(
            "unlearn",
            self.objective(task, model),
            lambda chosen: task.batch(chosen % task.points),  # a number of updates with full batches, not epochs
            updates * config.batch_size,
            trainer,
        )
        yield run.training(probe, on_epoch=lambda epoch, step, means: run.progress.epoch(epoch, 1, means))
