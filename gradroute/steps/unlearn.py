"""RMU, representation misdirection for unlearning (Li et al. 2024, arXiv 2403.03218), as a baseline (GR App. C)."""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gradroute.config.language_schema import UnlearnConfig
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.routing.regions import matching
from gradroute.tasks.base import Probe
from gradroute.tasks.language import LanguageModelling
from gradroute.training.objectives import Batch, Objective, Part, Term, Terms, at_least_float32, in_parts

if TYPE_CHECKING:
    from gradroute.running.run import Run
    from gradroute.training.fit import Task

OTHERS = "others"


def direction(width: int, norm: float, seed: int) -> torch.Tensor:
    """Where the forget group's activations are led, `(width,)`: uniform in [0, 1), then of this length."""
    found = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=0) * norm


def outgoing(model: nn.Module, layers: list[int]) -> dict[str, nn.Parameter]:
    """The weights by name that bring MLP units of these layers to the residual stream. Raises: UserError."""
    names = [name for layer in layers for name in model.mlp_layers(layer)[1]]  # type: ignore[operator]
    return {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in names}


class MisdirectionObjective(Objective):
    """The squared distance of the forget group's activations to a point, and of all others to what they were.

    Only the parameters given are trained; the others of the model need no gradient from now on.

    Args:
        model, frozen: the model, and one that stays as it was.
        site: the module whose output, `(batch, length, width)`, is meant.
        trained: parameters of the model, by name.
        number: of the forget group.
        target: `(width,)`, where its activations are led.
    """

    def __init__(
        self, model: nn.Module, frozen: nn.Module, site: str, trained: dict[str, nn.Parameter], unlearn: UnlearnConfig,
        number: int, target: torch.Tensor,
    ) -> None:  # fmt: skip
        self.led = Term("model", unlearn.group, "all", "misdirection")
        self.kept = Term("model", OTHERS, "all", "drift")
        super().__init__({self.led: 1.0, self.kept: unlearn.retain})
        self._models, self.site = (model, frozen), site  # in a tuple: their parameters are not this module's
        model.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.trained = nn.ParameterList(trained.values())
        self.number, self.target = number, target

    def _activation(self, model: nn.Module, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        seen: list[torch.Tensor] = []

        def look(module: nn.Module, inputs: Any, output: Any) -> None:
            seen.append(output[0] if isinstance(output, tuple) else output)

        with model.get_submodule(self.site).register_forward_hook(look):
            model(tokens, documents)
        return at_least_float32(seen[0])

    def _chosen(self, targets: torch.Tensor, group_index: torch.Tensor) -> list[torch.Tensor]:
        """Where tokens predict one: of the forget group, and of the others."""
        counted, own = targets != IGNORED, group_index == self.number
        return [counted & own, counted & ~own]

    def parts(self, batch: Batch, number: int) -> Iterator[Part]:
        """Rows, and the whole batch's tokens of the forget group and of the others."""
        counts = torch.stack([chosen.sum() for chosen in self._chosen(batch[1], batch[3])])
        for part in in_parts(batch, number):
            yield (*part, counts)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, group_index: torch.Tensor,
        membership: torch.Tensor, counts: torch.Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Terms for rows of tokens, all `(batch, length)`: means over the tokens that predict one, and over width.

        `counts`, `(2,)`: of those tokens in the batch that the rows are a part of, the forget group's and the others'.
        """
        model, frozen = self._models
        now = self._activation(model, tokens, documents)
        with torch.no_grad():
            then = self._activation(frozen, tokens, documents)
        chosen = self._chosen(targets, group_index)
        counts = torch.stack([own.sum() for own in chosen]) if counts is None else counts
        led = (now - self.target).square().mean(-1)
        kept = (now - then).square().mean(-1)
        found: Terms = {}
        for i, (term, each) in enumerate(((self.led, led), (self.kept, kept))):
            value = torch.where(chosen[i], each, 0).sum() / counts[i].clamp(min=1)
            found[term] = (value, self.weights[term])
        return found


def _objective(problem: LanguageModelling, unlearn: UnlearnConfig, model: nn.Module) -> MisdirectionObjective:
    """Of a model that begins as what is left of the training. Raises: UserError if site or layers do not fit it."""
    site, *more = matching(unlearn.site, [name for name, _ in model.named_modules() if name], "unlearn.site:")
    if more:
        raise UserError(f"unlearn.site={unlearn.site}: {1 + len(more)} modules are meant; name one, such as {site}")
    trained = outgoing(model, unlearn.layers)
    width = next(iter(trained.values())).shape[0]  # units come in, the residual stream goes out
    target = direction(width, unlearn.norm, problem.config.seed).to(problem.device)
    return MisdirectionObjective(
        model, problem.left(), site, trained, unlearn, problem.names.index(unlearn.group), target
    )


def try_unlearning(problem: LanguageModelling, unlearn: UnlearnConfig) -> None:
    """Raise UserError for what cannot be unlearned so: that must be said before hours of training."""
    objective = _objective(problem, unlearn, problem.left())
    batch = problem.batch(torch.arange(min(2, problem.points), device=problem.device))
    try:
        objective(*batch)
    except (RuntimeError, IndexError) as error:
        raise UserError(
            f"unlearn.site={unlearn.site}: is not the residual stream, such as blocks.2 ({error})"
        ) from None


def unlearning(run: "Run") -> Iterator["Task"]:
    """Train what the training, or the ablation, left; it is the model `unlearned` from then on."""
    problem, unlearn = run.problem, run.config.unlearn
    assert isinstance(problem, LanguageModelling) and unlearn is not None  # by the configuration's checks
    model = problem.made.get("unlearned") or problem.make("unlearned")
    size, updates = run.config.trainer.batch_size, run.config.trainer.unlearn_steps or 0
    trainer = replace(
        run.config.trainer, epochs=1, lr=run.config.trainer.lr * unlearn.rate, schedule="constant", warmup_steps=0
    )
    probe = Probe(
        "unlearn",
        _objective(problem, unlearn, model),
        lambda chosen: problem.batch(chosen % problem.points),  # so many updates of whole batches, not epochs
        updates * size,
        trainer,
    )
    yield run.task(probe, on_epoch=lambda epoch, step, means: run.progress.epoch(epoch, 1, means))
