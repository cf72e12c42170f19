"""A ResNet for small images, cut into an encoder and a decoder at a stage (GR App. B.1); blocks are torchvision's."""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock, conv1x1, conv3x3

from gradroute.config.image_schema import GROUPED, ResNetSizes

Norm = Callable[[int], nn.Module]


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
    """`encoder` to `(batch, channels, height, width)`, `decoder` to logits of the classes.

    The encoding is the output of the stage `sizes.split`. Where more stages follow, which would carry it on beside
    their convolutions, a 1x1 convolution before it and one after it break the residual path (GR App. B.1).
    """

    def __init__(self, sizes: ResNetSizes, channels: int, classes: int) -> None:
        super().__init__()
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
