"""The method in one function: identity forward, masked backward."""

from typing import Any

import torch


class _MaskGradient(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(activation: torch.Tensor, mask: torch.Tensor, copy: bool) -> torch.Tensor:
        return activation.clone() if copy else activation.view_as(activation)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, torch.Tensor, bool], output: torch.Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        (mask,) = ctx.saved_tensors
        return (gradients[0] * mask).to(gradients[0].dtype), None, None


def mask_gradient(activation: torch.Tensor, mask: torch.Tensor, copy: bool = False) -> torch.Tensor:
    """Return `activation` unchanged to the bit; multiply the gradient that flows back through it by `mask`.

    The gradient equals that of the published `mask * a + (1 - mask) * a.detach()`, without rounding the forward value
    and without extra passes (GR section 3).

    Args:
        activation: any float tensor.
        mask: edge weights, any reals, broadcastable to the shape of `activation`.
        copy: return a copy instead of a view, which the next operation may change in place.
    """
    masked: torch.Tensor = _MaskGradient.apply(activation, mask, copy)
    return masked
