"""The loss of RMU: where activations of forget tokens are led, and how far the others drift (Li et al. 2024)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gradroute.data.text.packing import IGNORED
from gradroute.training.measures import at_least_float32
from gradroute.training.objectives import Batch, Objective, Part, Term, Terms, in_parts

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
        group, number: of what is to be forgotten. retain: weight of keeping the others.
        target: `(width,)`, where its activations are led.
    """

    def __init__(
        self, model: nn.Module, frozen: nn.Module, site: str, trained: dict[str, nn.Parameter], group: str,
        retain: float, number: int, target: torch.Tensor,
    ) -> None:  # fmt: skip
        self.led = Term("model", group, "all", "misdirection")
        self.kept = Term("model", OTHERS, "all", "drift")
        super().__init__({self.led: 1.0, self.kept: retain})
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
