"""What the problems of `scripts/mask_design.sh` need besides the package: two models, and data with a rare group."""

from collections.abc import Sequence

import torch
import torchvision
from torch import nn

from gradroute.data.images.dataset import ImageDataset, LabelledImages
from gradroute.data.images.torchvision import MNIST


class RareMNIST(ImageDataset):
    """MNIST in which the label 0 is 5 % of the data: the first images of it, and all of the others."""

    label_noun, classes = "digit", 10

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the training and the test images."""
        train, test = MNIST().load()
        return self.thinned(train), self.thinned(test)

    @staticmethod
    def thinned(part: LabelledImages) -> LabelledImages:
        """Return the images in their order, without the later ones of label 0."""
        rare = part.labels == 0
        kept = ~rare | (torch.cumsum(rare, 0) <= round(int((~rare).sum()) * 5 / 95))
        return LabelledImages(part.images[kept], part.labels[kept], {})


class ConvAutoencoder(nn.Module):
    """A convolutional autoencoder of 28 x 28 images, with three convolutions of stride 2 and a code of 32 channels.

    Args:
        shape: of an image, which the run supplies. width: channels of the first convolution.
    """

    task = "reconstruction"

    def __init__(self, shape: Sequence[int], width: int = 16) -> None:
        super().__init__()
        channels = (1, *shape)[-3]
        self.encoder = nn.Sequential(
            nn.Conv2d(channels, width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.Conv2d(2 * width, 32, 3, 2, 1),
        )  # fmt: skip
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 2 * width, 3, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(),
            nn.ConvTranspose2d(width, channels, 4, 2, 1),
        )  # fmt: skip

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Reconstruct images `(batch, channels, 28, 28)`."""
        reconstructed: torch.Tensor = self.decoder(self.encoder(images))
        return reconstructed


def resnet18(shape: Sequence[int], classes: int) -> nn.Module:
    """Return torchvision's ResNet of 18 layers with group norm, as batch norm would need a pass for each group.

    Its stem halves the sides twice, as torchvision has it, so that it can be trained on a CPU.
    """
    model = torchvision.models.resnet18(num_classes=classes, norm_layer=lambda channels: nn.GroupNorm(8, channels))
    model.conv1 = nn.Conv2d((1, *shape)[-3], 64, 7, 2, 3, bias=False)
    found: nn.Module = model
    return found
