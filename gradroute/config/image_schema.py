"""The part of the typed schema that only classifiers of images have."""

from dataclasses import dataclass, field

GROUPED = 8  # channels that group norm takes together


@dataclass
class AugmentConfig:
    """How images that a classifier is trained on are changed, each by itself and every time anew.

    crop: pixels by which an image may be moved, the gap being filled with the darkest value. flip: every second one,
    by chance, is mirrored.
    """

    crop: int = 0
    flip: bool = False


@dataclass
class ResNetSizes:
    """Sizes of a ResNet of torchvision's basic blocks, with a stem for small images: 3x3 and no pooling (GR App. B.1).

    blocks: how many in each stage. width: channels of the first stage; each further one has twice as many and half
    the side. split: the stage, `layer1` to `layerN`, whose output is the encoding. norm: `group`, by groups of 8
    channels, or `batch`, which takes a pass for each group of the data.
    """

    blocks: list[int] = field(default_factory=lambda: [2, 2, 2, 2])
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
