"""The autoencoder of GR App. B: an encoder without bias in its last layer, and one or more decoders."""

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.limits import LAYERS, WIDTH, Between, Items
from gradroute.models.base import perceptron
from gradroute.models.perceptron import Perceptron

Units = Annotated[int, Between(1, WIDTH)]


class Autoencoder(nn.Module):
    """`encoder` to a code without bias, `decoder` back to pixels (GR App. B). Its sites are its modules' names.

    With several decoders, `decoder` is the first and `more_decoders` the others (GR table 2, separate decoders).

    Args:
        shape: shape of an image; the run supplies it.
        hidden: widths of the encoder's hidden layers; the decoder has them in reverse.
        encoding: units of the code.
        decoders: 1, or the number of groups, for one decoder per group.
    """

    flat_inputs = True  # images are passed as (batch, pixels)
    task = "reconstruction"
    stackable = True  # several of one shape can be trained as one batched program

    def __init__(
        self, shape: Sequence[int], hidden: Annotated[Sequence[Units], Items(1, LAYERS)] = (2048, 512),
        encoding: Units = 32, decoders: Annotated[int, Between(1, 100_000)] = 1,
    ) -> None:  # fmt: skip
        super().__init__()
        self.hidden, pixels = list(hidden), math.prod(shape)
        widths = [encoding, *reversed(hidden), pixels]
        self.encoder = perceptron([pixels, *hidden, encoding], last_bias=False)
        self.decoder = perceptron(widths)
        self.more_decoders = nn.ModuleList(perceptron(widths) for _ in range(decoders - 1))
        self.fixed_shapes = False  # decode every image by every decoder and select: vmap cannot pick rows

    @property
    def takes_groups(self) -> bool:
        """Whether the forward pass needs each image's group, to choose its decoder."""
        return len(self.more_decoders) > 0

    @staticmethod
    def encoding_units(**arguments: Any) -> tuple[str, int, int | None]:
        """Return the setting for the number of units of the site `encoder`, the number, and their axis (None: last)."""
        return "model.encoding", int(arguments["encoding"]), None

    def certificate(self, seen: Sequence[int], outputs: int) -> nn.Module:
        """Return a decoder that sees `(…, units)` of an image."""
        layers = perceptron([math.prod(seen), *reversed(self.hidden), outputs])
        return Perceptron(OrderedDict(flatten=nn.Flatten(), **dict(layers.named_children())))

    def forward(self, images: torch.Tensor, which: torch.Tensor | None = None) -> torch.Tensor:
        """Reconstruct images `(batch, pixels)`, image i by decoder number `which[i]`; by the first if None."""
        encoding = self.encoder(images)
        if which is None or not len(self.more_decoders):
            reconstruction: torch.Tensor = self.decoder(encoding)
            return reconstruction
        if self.fixed_shapes or encoding.device.type != "cpu":  # to find the rows waits for the device
            decoded = torch.stack([decode(encoding) for decode in [self.decoder, *self.more_decoders]])
            return decoded.gather(0, which[None, :, None].expand(1, *decoded.shape[1:])).squeeze(0)
        rows = [torch.nonzero(which == number).flatten() for number in range(1 + len(self.more_decoders))]
        parts = [decode(encoding[r]) for decode, r in zip([self.decoder, *self.more_decoders], rows, strict=True)]
        return torch.cat(parts)[torch.cat(rows).argsort()]
