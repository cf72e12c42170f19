"""Models. They know nothing of routing: a site is any of their modules, by its dotted name."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from gradroute.config.language_schema import TransformerSizes
from gradroute.config.schema import ModelConfig
from gradroute.errors import UserError, unknown
from gradroute.models import resnet
from gradroute.models.resnet import SplitResNet
from gradroute.models.transformer import Transformer, TransformerConfig
from gradroute.routing.expansion import Layer, expand


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
    """`encoder` to a code without bias, `decoder` back to pixels (GR App. B).

    With several decoders, `decoder` is the first and `more_decoders` the others (GR table 2, separate decoders).
    """

    def __init__(self, inputs: int, hidden: Sequence[int], encoding: int, decoders: int = 1) -> None:
        super().__init__()
        widths = [encoding, *reversed(hidden), inputs]
        self.encoder = perceptron([inputs, *hidden, encoding], last_bias=False)
        self.decoder = perceptron(widths)
        self.more_decoders = nn.ModuleList(perceptron(widths) for _ in range(decoders - 1))
        self.fixed_shapes = False  # decode every image by every decoder and choose: for vmap, which cannot pick rows

    def forward(self, images: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstruct images `(batch, pixels)`, image i by decoder number `which[i]`; by the first if None."""
        encoding = self.encoder(images)
        if which is None or not len(self.more_decoders):
            reconstruction: torch.Tensor = self.decoder(encoding)
            return reconstruction
        if self.fixed_shapes:
            decoded = torch.stack([decode(encoding) for decode in [self.decoder, *self.more_decoders]])
            return decoded.gather(0, which[None, :, None].expand(1, *decoded.shape[1:])).squeeze(0)
        rows = [torch.nonzero(which == number).flatten() for number in range(1 + len(self.more_decoders))]
        parts = [decode(encoding[r]) for decode, r in zip([self.decoder, *self.more_decoders], rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]


def build(config: ModelConfig, shape: Sequence[int], classes: int = 0) -> nn.Module:
    """The model that a configuration names, for images of a shape; raises UserError for an unknown one.

    classes: how many labels a classifier tells apart; 0 of an autoencoder.
    """
    if config.resnet is not None:
        return SplitResNet(config.resnet, shape[0], classes)
    if config.name != "autoencoder":
        raise unknown("model", config.name, ["autoencoder"])
    return Autoencoder(math.prod(shape), config.hidden, config.encoding, config.decoders)


def build_certificate(config: ModelConfig, seen: Sequence[int], outputs: int) -> nn.Module:
    """A decoder of the model's kind that sees `(…, units)` of an image; outputs: pixels or classes.

    Raises: UserError for what such a decoder cannot see.
    """
    if config.resnet is None:
        layers = perceptron([math.prod(seen), *reversed(config.hidden), outputs])
        return nn.Sequential(OrderedDict(flatten=nn.Flatten(), **dict(layers.named_children())))
    if len(seen) != 3:
        right = "give it channels of a convolution, such as site: encoder, axis: 1"
        raise UserError(
            f"losses.certificates: a region shows {list(seen)} of an image, no (height, width, units); {right}"
        )
    return resnet.build_certificate(config.resnet, seen, outputs)


def build_transformer(sizes: TransformerSizes, vocabulary: int, context: int) -> Transformer:
    """The untrained model; added units are drawn as the others are. Raises: UserError for sizes that do not fit."""
    kept = {key: getattr(sizes, key) for key in TransformerConfig.__dataclass_fields__ if hasattr(sizes, key)}
    model = Transformer(TransformerConfig(vocabulary=vocabulary, context=context, **kept))
    for number in sizes.expand:
        add_units(model, Layer(*model.mlp_layers(number)), sizes.added, 0.02, 0.02 / (2 * sizes.layers) ** 0.5)
    return model


@torch.no_grad()
def add_units(model: nn.Module, layer: Layer, added: int, made: float, read: float) -> None:
    """Expand an MLP; new rows and columns are normal with deviations `made` and `read`, new biases 0."""
    new = list(expand(model, layer, added))
    for name in layer.producers:
        producer: Any = model.get_submodule(name)
        producer.weight[new] = torch.randn(added, producer.weight.shape[1]) * made
        if producer.bias is not None:
            producer.bias[new] = 0
    for name in layer.consumers:
        consumer: Any = model.get_submodule(name)
        consumer.weight[:, new] = torch.randn(len(consumer.weight), added) * read
