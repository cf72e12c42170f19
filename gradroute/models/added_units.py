"""Add units to an MLP, or heads to an attention, of a new model or of a trained one."""

from typing import Any

import torch
from torch import nn

from gradroute.routing.expansion import Layer, expand


@torch.no_grad()
def add_units(model: nn.Module, layer: Layer, added: int, made: float, read: float) -> None:
    """Add units or heads: new rows and columns are normal with deviations `made` and `read`, new biases 0."""
    units = expand(model, layer, added)
    new = [unit * layer.width + feature for unit in units for feature in range(layer.width)]
    for name in layer.producers:
        producer: Any = model.get_submodule(name)
        producer.weight[new] = torch.randn(len(new), producer.weight.shape[1]).mul_(made)
        if producer.bias is not None:
            producer.bias[new] = 0
    for name in layer.consumers:
        consumer: Any = model.get_submodule(name)
        consumer.weight[:, new] = torch.randn(len(consumer.weight), len(new)).mul_(read)


@torch.no_grad()
def copy_units(model: nn.Module, layer: Layer, added: int, scale: float = 1.0) -> None:
    """Add units that read what existing ones read, chosen at random, and that nothing reads yet.

    The model computes what it did. Units drawn as for a new model are far smaller than those of a trained one: in
    SmolLM2-135M their activations had a norm of 0.05, those of the model's own units 23.

    scale: factor of their activations, by the inputs of the last producer: in a gated MLP the one without the
        nonlinearity. Adam moves every weight by about the learning rate, so what the units add to the residual stream
        grows by this factor in as many updates, like the `alpha` of LoRA (arXiv 2106.09685).
    """
    units = list(expand(model, layer, added, "silent"))
    chosen = torch.randint(units[0], (added,))
    for name in layer.producers:
        producer: Any = model.get_submodule(name)
        for tensor in (producer.weight, producer.bias):
            if tensor is not None:
                tensor[units] = tensor[chosen] * (scale if name == layer.producers[-1] else 1.0)
