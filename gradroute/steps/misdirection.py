"""The loss of RMU: move activations of forget tokens to a target and keep the others in place (Li et al. 2024)."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from gradroute.data.text.packing import IGNORED
from gradroute.models.logits import body
from gradroute.training.measures import at_least_float32
from gradroute.training.objectives import Batch, Objective, Part, Term, Terms, in_parts

OTHERS = "others"


def direction(width: int, norm: float, seed: int) -> torch.Tensor:
    """Return the target of the forget group's activations, `(width,)`: uniform in [0, 1), scaled to this norm."""
    found = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=0) * norm


def outgoing(model: nn.Module, layers: list[int]) -> dict[str, nn.Parameter]:
    """Return these layers' weights from MLP units to the residual stream, by name. Raises: UserError."""
    names = [name for layer in layers for name in model.mlp_layers(layer)[1]]  # type: ignore[operator]
    return {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in names}


class MisdirectionObjective(Objective):
    """The squared distance of the forget group's activations to a target, and of all others to their original values.

    Only the parameters in `trained` are trained; the constructor turns gradients off for the model's other parameters.

    Args:
        model, frozen: the model, and a copy that does not change.
        site: module whose output, `(batch, length, width)`, has the activations.
        trained: parameters of the model, by name.
        group, number: name and number of the forget group. retain: weight of the distance of the others.
        target: target of the forget group's activations, `(width,)`.
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
            body(model)(tokens, documents)
        return at_least_float32(seen[0])

    def _chosen(self, targets: torch.Tensor, group_index: torch.Tensor) -> list[torch.Tensor]:
        """Return masks of the positions with a target: in the forget group, and in the others."""
        counted, own = targets != IGNORED, group_index == self.number
        return [counted & own, counted & ~own]

    def parts(self, batch: Batch, number: int) -> Iterator[Part]:
        """Yield parts of a batch, each with the batch's `counts`; see `forward`."""
        counts = torch.stack([chosen.sum() for chosen in self._chosen(batch[1], batch[3])])
        for part in in_parts(batch, number):
            yield (*part, counts)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, group_index: torch.Tensor,
        membership: torch.Tensor, counts: torch.Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Return the terms for rows of tokens, all `(batch, length)`: means over positions with a target, and width.

        `counts` `(2,)`: positions with a target in the batch that the rows are a part of: forget group, and others.
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
