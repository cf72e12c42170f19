"""The loss of RMU: move activations of forget tokens to a target and keep the others in place (Li et al. 2024)."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from gradroute.models.logits import body
from gradroute.routing.sites import undisturbed
from gradroute.steps.unlearning_losses import ForgetRetainObjective, Values
from gradroute.training.measures import at_least_float32
from gradroute.training.objectives import Batch


def direction(width: int, norm: float, seed: int) -> torch.Tensor:
    """Return the target of the forget group's activations, `(width,)`: uniform in [0, 1), scaled to this norm."""
    found = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(found, dim=0) * norm


def outgoing(model: nn.Module, layers: list[int]) -> dict[str, nn.Parameter]:
    """Return these layers' weights from MLP units to the residual stream, by name. Raises: UserError."""
    names = [name for layer in layers for name in model.mlp_layers(layer)[1]]  # type: ignore[operator]
    return {f"{name}.weight": model.get_parameter(f"{name}.weight") for name in names}


def activation(model: nn.Module, site: str, tokens: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
    """Return the output of the module `site` for rows of tokens, `(batch, length, width)`."""
    seen: list[torch.Tensor] = []

    def look(module: nn.Module, inputs: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    with model.get_submodule(site).register_forward_hook(look):
        body(model)(tokens, documents)
    return at_least_float32(seen[0])


def mean_norm(model: nn.Module, site: str, batches: Iterable[Batch]) -> float:
    """Return the mean L2 norm of the output of `site` over the tokens of some batches, without padding."""
    found = []
    with undisturbed(model):
        for tokens, _, documents, *_ in batches:
            found.append(activation(model, site, tokens, documents).detach()[documents >= 0].norm(dim=-1))
    return float(torch.cat(found).double().mean())


class MisdirectionObjective(ForgetRetainObjective):
    """The squared distance of the forget group's activations to a target, and of all others to their original values.

    Both are means over the width. Only the parameters in `trained` are trained; the constructor turns gradients off for
    the model's other parameters.

    Args:
        model, frozen: the model, and a copy that does not change.
        site: module whose output, `(batch, length, width)`, has the activations.
        trained: parameters of the model, by name.
        group, number: name and number of the forget group. retain: weight of the distance of the others.
        target: target of the forget group's activations, `(width,)`.
    """

    metrics = ("misdirection", "drift")

    def __init__(
        self, model: nn.Module, frozen: nn.Module, site: str, trained: dict[str, nn.Parameter], group: str,
        retain: float, number: int, target: torch.Tensor,
    ) -> None:  # fmt: skip
        super().__init__(group, number, retain)
        self._models, self.site = (model, frozen), site  # in a tuple: their parameters are not this module's
        model.requires_grad_(False)
        for parameter in trained.values():
            parameter.requires_grad_(True)
        self.trained = nn.ParameterList(trained.values())
        self.target = target

    def values(self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> Values:
        """Return both squared distances at every position."""
        model, frozen = self._models
        now = activation(model, self.site, tokens, documents)
        with torch.no_grad():
            then = activation(frozen, self.site, tokens, documents)
        return (now - self.target).square().mean(-1), (now - then).square().mean(-1)
