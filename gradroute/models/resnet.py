"""A ResNet for small images, cut into an encoder and a decoder at a stage (GR App. B.1); blocks are torchvision's."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from gradroute.config.limits import LAYERS, WIDTH, Between, Items, require, require_number
from gradroute.config.limits import one_of as require_one_of
from gradroute.errors import UserError

GROUPED = 8  # channels per group of group norm
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of a ResNet; see the arguments of `SplitResNet`."""

    blocks: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    split: str = "layer4"
    norm: str = "group"

    @property
    def stage(self) -> int:
        """The number of the stage that ends at the split, from 1."""
        return int(self.split.removeprefix("layer"))

    @property
    def encoding(self) -> int:
        """Channels of the encoding."""
        return int(self.width * 2 ** (self.stage - 1))

    def check(self) -> None:
        """Raise UserError for sizes that do not make a ResNet."""
        require_number("model.width", self.width, GROUPED, WIDTH >> (len(self.blocks) - 1), int)
        right = f"a multiple of {GROUPED}: group norm takes {GROUPED} channels together, and halves need whole ones"
        require(self.width % GROUPED == 0, "model.width", self.width, right)
        stages = tuple(f"layer{number + 1}" for number in range(len(self.blocks)))
        require_one_of("model.split", self.split, stages)


def _norm(name: str) -> Norm:
    """Return a function from channels to their norm, over one image's positions or over those of the batch."""
    return nn.BatchNorm2d if name == "batch" else lambda channels: nn.GroupNorm(channels // GROUPED, channels)


def _widths(sizes: ResNetSizes) -> list[int]:
    return [sizes.width * 2**number for number in range(len(sizes.blocks))]


def _stage(sizes: ResNetSizes, number: int) -> nn.Sequential:
    """Build stage `number`, from 1; all but the first halve the side and double the channels."""
    norm, widths, blocks = _norm(sizes.norm), _widths(sizes), sizes.blocks[number - 1]
    if number == 1:
        return nn.Sequential(*(BasicBlock(widths[0], widths[0], norm_layer=norm) for _ in range(blocks)))
    before, width = widths[number - 2 : number]
    shortcut = nn.Sequential(conv1x1(before, width, 2), norm(width))
    first = BasicBlock(before, width, 2, shortcut, norm_layer=norm)
    return nn.Sequential(first, *(BasicBlock(width, width, norm_layer=norm) for _ in range(blocks - 1)))


def _drawn(module: nn.Module) -> nn.Module:
    """Initialise convolutions as torchvision's ResNet does; return the module."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module


class Normalise(nn.Module):
    """Standardisation of pixels by each channel's mean and standard deviation; they are 0 and 1 until `fit`."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def fit(self, images: torch.Tensor) -> None:
        """Compute both from images `(n, channels, height, width)`."""
        deviation, mean = torch.std_mean(images, (0, 2, 3), keepdim=True)
        self.mean.copy_(mean[0])
        self.deviation.copy_(deviation[0].clamp(min=1e-6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return standardised images of the same shape."""
        return (images - self.mean) / self.deviation


class SplitResNet(nn.Module):
    """ResNet for small images: `encoder` to `(batch, channels, height, width)`, `decoder` to logits.

    The encoding is the output of the stage `split`. If more stages follow, a 1x1 convolution before it and one
    after it break the residual path, which would carry it past their convolutions (GR App. B.1).

    Args:
        shape: shape of an image; the run supplies it.
        classes: the number of labels; the run supplies it.
        blocks: number of torchvision's basic blocks in each stage; each further stage halves the side.
        width: channels of the first stage; each further stage doubles them.
        split: the stage, `layer1` to `layerN`, whose output is the encoding.
        norm: `group`, over groups of 8 channels, or `batch`, which needs a pass for each group of the data.

    Raises: UserError for sizes that do not fit together.
    """

    task = "classification"

    def __init__(
        self, shape: Sequence[int], classes: int,
        blocks: Annotated[Sequence[Annotated[int, Between(1, LAYERS)]], Items(1, 8)] = (2, 2, 2, 2),
        width: int = 64, split: str = "layer4", norm: Literal["group", "batch"] = "group",
    ) -> None:  # fmt: skip
        super().__init__()
        self.sizes = sizes = ResNetSizes(blocks, width, split, norm)
        sizes.check()
        channels = (1, *shape)[-3]
        self.normalise = Normalise(channels)
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers["conv1"] = conv3x3(channels, sizes.width)
        layers["bn1"] = _norm(sizes.norm)(sizes.width)
        layers["relu"] = nn.ReLU(inplace=True)
        for number in range(1, sizes.stage + 1):
            layers[f"layer{number}"] = _stage(sizes, number)
        if sizes.stage < len(sizes.blocks):
            layers["before"] = conv1x1(sizes.encoding, sizes.encoding)
        self.encoder = _drawn(nn.Sequential(layers))
        self.decoder = build_decoder(sizes, sizes.encoding, classes)

    @staticmethod
    def encoding_units(**arguments: Any) -> tuple[str, int, int | None]:
        """Return the name for the number of channels of the site `encoder`, the number, and their axis."""
        sizes = ResNetSizes(arguments["blocks"], arguments["width"], arguments["split"])
        sizes.check()
        return "channels of the encoding", sizes.encoding, 1

    def certificate(self, seen: Sequence[int], outputs: int) -> nn.Module:
        """Return a decoder that sees `(height, width, units)` of an image. Raises: UserError for other shapes."""
        if len(seen) != 3:
            right = "give it channels of a convolution, such as site: encoder, axis: 1"
            fault = f"a region has shape {list(seen)} per image, not (height, width, units)"
            raise UserError(f"losses.certificates: {fault}; {right}")
        return build_certificate(self.sizes, seen, outputs)

    def fit(self, images: torch.Tensor) -> None:
        """Fit the normalisation to the training images `(n, channels, height, width)`."""
        self.normalise.fit(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, classes)` of images `(batch, channels, height, width)` in [-1, 1]."""
        logits: torch.Tensor = self.decoder(self.encoder(self.normalise(images)))
        return logits


def build_decoder(sizes: ResNetSizes, units: int, classes: int) -> nn.Sequential:
    """Return the layers from `units` channels at the split to logits: remaining stages, mean over positions, linear.

    Without remaining stages, this is a linear classifier of the channels' means.
    """
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    left = range(sizes.stage + 1, len(sizes.blocks) + 1)
    if left:
        layers["after"] = conv1x1(units, sizes.encoding)
    for number in left:
        layers[f"layer{number}"] = _stage(sizes, number)
    layers["pool"], layers["flatten"] = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    layers["fc"] = nn.Linear(_widths(sizes)[-1] if left else units, classes)
    decoder = nn.Sequential(layers)
    _drawn(decoder)
    return decoder


class _ChannelsFirst(nn.Module):
    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        return seen.movedim(-1, 1)


def build_certificate(sizes: ResNetSizes, seen: Sequence[int], classes: int) -> nn.Sequential:
    """Return a decoder like the model's that sees `(batch, height, width, units)`; `seen` is without the batch."""
    decoder = build_decoder(sizes, seen[-1], classes)
    return nn.Sequential(OrderedDict(view=_ChannelsFirst(), **dict(decoder.named_children())))
