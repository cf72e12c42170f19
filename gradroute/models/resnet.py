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

GROUPED = 8  # channels that group norm takes together
Norm = Callable[[int], nn.Module]


@dataclass(frozen=True)
class ResNetSizes:
    """Sizes of a ResNet, as the arguments of `SplitResNet`."""

    blocks: Sequence[int] = (2, 2, 2, 2)
    width: int = 64
    split: str = "layer4"
    norm: str = "group"

    @property
    def stage(self) -> int:
        """The number of the stage with the split, from 1."""
        return int(self.split.removeprefix("layer"))

    @property
    def encoding(self) -> int:
        """Channels of the encoding."""
        return int(self.width * 2 ** (self.stage - 1))

    def check(self) -> None:
        """Raise UserError for sizes that make no ResNet."""
        require_number("model.width", self.width, GROUPED, WIDTH >> (len(self.blocks) - 1), int)
        right = f"a multiple of {GROUPED}: halves are of whole channels, and group norm takes {GROUPED} together"
        require(self.width % GROUPED == 0, "model.width", self.width, right)
        stages = tuple(f"layer{number + 1}" for number in range(len(self.blocks)))
        require_one_of("model.split", self.split, stages)


def _norm(name: str) -> Norm:
    """The norm of so many channels: over an image's own positions, or over those of the batch."""
    return nn.BatchNorm2d if name == "batch" else lambda channels: nn.GroupNorm(channels // GROUPED, channels)


def _widths(sizes: ResNetSizes) -> list[int]:
    return [sizes.width * 2**number for number in range(len(sizes.blocks))]


def _stage(sizes: ResNetSizes, number: int) -> nn.Sequential:
    """Stage `number`, from 1; all but the first halve the side and double the channels."""
    norm, widths, blocks = _norm(sizes.norm), _widths(sizes), sizes.blocks[number - 1]
    if number == 1:
        return nn.Sequential(*(BasicBlock(widths[0], widths[0], norm_layer=norm) for _ in range(blocks)))
    before, width = widths[number - 2 : number]
    shortcut = nn.Sequential(conv1x1(before, width, 2), norm(width))
    first = BasicBlock(before, width, 2, shortcut, norm_layer=norm)
    return nn.Sequential(first, *(BasicBlock(width, width, norm_layer=norm) for _ in range(blocks - 1)))


def _drawn(module: nn.Module) -> nn.Module:
    """Convolutions drawn anew, as torchvision's ResNet draws them."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
    return module


class Normalise(nn.Module):
    """Pixels less their mean, over their standard deviation, of each channel; 0 and 1 until `fit`."""

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels, 1, 1))
        self.register_buffer("deviation", torch.ones(channels, 1, 1))

    def fit(self, images: torch.Tensor) -> None:
        """Take both from images `(n, channels, height, width)`."""
        deviation, mean = torch.std_mean(images, (0, 2, 3), keepdim=True)
        self.mean.copy_(mean[0])
        self.deviation.copy_(deviation[0].clamp(min=1e-6))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images of the same shape."""
        return (images - self.mean) / self.deviation


class SplitResNet(nn.Module):
    """`encoder` to `(batch, channels, height, width)`, `decoder` to logits; blocks and stem for small images.

    The encoding is the output of the stage `split`. If more stages follow, which would carry it on beside their
    convolutions, a 1x1 convolution before it and one after it break the residual path (GR App. B.1).

    Args:
        shape: of an image; the run supplies it. classes: the number of labels; the run supplies it.
        blocks: of torchvision's basic blocks in each stage; each further stage has half the side.
        width: channels of the first stage; each further stage has twice as many.
        split: the stage, `layer1` to `layerN`, whose output is the encoding.
        norm: `group`, by groups of 8 channels, or `batch`, which takes a pass for each group of the data.

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
        """Which setting says how many channels the site `encoder` has, how many, and on which axis."""
        sizes = ResNetSizes(arguments["blocks"], arguments["width"], arguments["split"])
        sizes.check()
        return "channels of the encoding", sizes.encoding, 1

    def certificate(self, seen: Sequence[int], outputs: int) -> nn.Module:
        """A decoder that sees `(height, width, units)` of an image. Raises: UserError for anything else."""
        if len(seen) != 3:
            right = "give it channels of a convolution, such as site: encoder, axis: 1"
            fault = f"a region shows {list(seen)} of an image, no (height, width, units)"
            raise UserError(f"losses.certificates: {fault}; {right}")
        return build_certificate(self.sizes, seen, outputs)

    def fit(self, images: torch.Tensor) -> None:
        """Take the normalisation from the training images `(n, channels, height, width)`."""
        self.normalise.fit(images)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Logits `(batch, classes)` of images `(batch, channels, height, width)` in [-1, 1]."""
        logits: torch.Tensor = self.decoder(self.encoder(self.normalise(images)))
        return logits


def build_decoder(sizes: ResNetSizes, units: int, classes: int) -> nn.Sequential:
    """What makes logits from `units` channels at the split: the stages that are left, the mean over positions, linear.

    Without stages left that is a linear classifier of each channel's mean.
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
    """A decoder of the model's kind that sees `(batch, height, width, units)` of an image, `seen` without the batch."""
    decoder = build_decoder(sizes, seen[-1], classes)
    return nn.Sequential(OrderedDict(view=_ChannelsFirst(), **dict(decoder.named_children())))
