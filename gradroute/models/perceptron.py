"""A perceptron whose training on a CPU writes each layer's output once: bias and ReLU belong to the matrix product."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _affine(rows: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, relu: bool) -> torch.Tensor:
    """Return `rows @ weight.T + bias`, with ReLU if asked, in one pass over the output."""
    made: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "relu" if relu else "none", [], "")
    return made


def _product(gradient: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Return `gradient.T @ rows`; a product is slower by more than it takes to transpose the narrower factor before."""
    turned = gradient.T
    return (turned.contiguous() if gradient.shape[1] <= rows.shape[1] else turned) @ rows


class _Layers(torch.autograd.Function):
    """Linear layers with ReLU between them; the gradients of one layer overwrite those of the next."""

    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, *parameters: torch.Tensor | None) -> torch.Tensor:
        weights, biases = parameters[::2], parameters[1::2]
        outputs = [rows]
        for number, (weight, bias) in enumerate(zip(weights, biases, strict=True), 1):
            assert weight is not None
            outputs.append(_affine(outputs[-1], weight, bias, relu=number < len(weights)))
        ctx.save_for_backward(*outputs[:-1], *weights)
        return outputs[-1]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layers = len(ctx.saved_tensors) // 2
        inputs, weights = ctx.saved_tensors[:layers], ctx.saved_tensors[layers:]
        gradient, found = gradients[0], list[torch.Tensor | None]()
        for layer in reversed(range(layers)):
            wanted, biased = ctx.needs_input_grad[1 + 2 * layer : 3 + 2 * layer]
            found += [gradient.sum(0) if biased else None, _product(gradient, inputs[layer]) if wanted else None]
            if layer:
                gradient = gradient @ weights[layer]
                torch.ops.aten.threshold_backward.grad_input(gradient, inputs[layer], 0, grad_input=gradient)
        below = gradient @ weights[0] if ctx.needs_input_grad[0] else None
        return (below, *reversed(found))


class Perceptron(nn.Sequential):
    """Linear layers with ReLU between them, after an optional `nn.Flatten`.

    Where all is bfloat16, on a CPU and inside a training, one function computes all layers and their gradients, with
    the values and gradients of the modules one after the other. It is not taken where somebody looks at a layer inside.

    Attribute: `fixed_shapes`, set by a program that stacks models with `vmap`, where it is not taken either.
    """

    fixed_shapes = False

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the outputs `(batch, outputs)` of `rows` `(batch, inputs)`, or `(batch, …)` after a Flatten."""
        modules = list(self)
        layers = modules[1:] if modules and type(modules[0]) is nn.Flatten else modules
        if torch.compiler.is_compiling() or self.fixed_shapes or not self._joined(rows, layers):
            output: torch.Tensor = super().forward(rows)
            return output
        given = [p for layer in layers[::2] for p in (layer.weight, layer.bias)]
        flat = rows.flatten(1) if len(layers) < len(modules) else rows
        output = _Layers.apply(flat.to(torch.bfloat16).contiguous(), *given)
        return output

    def _joined(self, rows: torch.Tensor, layers: Sequence[nn.Module]) -> bool:
        """Return whether one function may stand for the layers."""
        return (
            torch.is_grad_enabled()
            and rows.device.type == "cpu"
            and rows.dim() >= 2
            and len(layers) % 2 == 1
            and all(type(layer) is (nn.ReLU if n % 2 else nn.Linear) for n, layer in enumerate(layers))
            and all(layer.weight.dtype == torch.bfloat16 for layer in layers[::2])
            and not any(getattr(layer, hooks) for layer in self for hooks in HOOKS)
            and torch.backends.mkldnn.is_available()
            and hasattr(torch.ops.mkldnn, "_linear_pointwise")
            and torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
