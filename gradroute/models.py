"""Models. They know nothing of routing: a site is any of their modules, by its dotted name."""

from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn

from gradroute.errors import unknown
from gradroute.schema import ModelConfig


def perceptron(widths: Sequence[int], last_bias: bool = True) -> nn.Sequential:
    """Linear layers `linear0, act0, linear1, …` with ReLU between, the last one linear; PyTorch's default init."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    last = len(widths) - 2
    for i, (inputs, outputs) in enumerate(pairwise(widths)):
        layers[f"linear{i}"] = nn.Linear(inputs, outputs, bias=i < last or last_bias)
        if i < last:
            layers[f"act{i}"] = nn.ReLU()
    return nn.Sequential(layers)


class Autoencoder(nn.Module):
    """`encoder` to a code without bias, `decoder` back to pixels (GR App. B)."""

    def __init__(self, inputs: int, hidden: Sequence[int], encoding: int) -> None:
        super().__init__()
        self.encoder = perceptron([inputs, *hidden, encoding], last_bias=False)
        self.decoder = perceptron([encoding, *reversed(hidden), inputs])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct images `(batch, pixels)`."""
        reconstruction: torch.Tensor = self.decoder(self.encoder(images))
        return reconstruction


def build(config: ModelConfig, inputs: int) -> nn.Module:
    """The model that a configuration names; raises UserError for an unknown one."""
    if config.name != "autoencoder":
        raise unknown("model", config.name, ["autoencoder"])
    return Autoencoder(inputs, config.hidden, config.encoding)


def build_certificate(config: ModelConfig, units: int, outputs: int) -> nn.Module:
    """A decoder of the model's shape that sees only `units` units of it."""
    return perceptron([units, *reversed(config.hidden), outputs])
