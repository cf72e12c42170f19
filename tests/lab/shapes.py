"""A user's own data set, model, step, measure, ablation and plot, in one file beside `conf/`."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

import torch
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from torch import nn

from gradroute.config.limits import Between
from gradroute.data.images.dataset import ImageDataset, LabelledImages
from gradroute.reporting.run_data import RunData
from gradroute.routing.ablation import Ablation, replaced
from gradroute.steps.base import RunState, Step
from gradroute.tasks.ablations import AblationMethod, Subject
from gradroute.tasks.evaluation import Head
from gradroute.training.measures import Measure
from gradroute.training.training import Training


class Shapes(ImageDataset):
    """Coloured bars, 64 x 48 pixels: upright ones are label 0, level ones 1; the column `hue` says red or blue."""

    def __init__(self, count: Annotated[int, Between(8, 100_000)] = 256, seed: int = 0) -> None:
        self.count, self.seed = count, seed

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return images to train on, and a quarter as many to test on."""
        generator = torch.Generator().manual_seed(self.seed)
        return self._drawn(self.count, generator), self._drawn(self.count // 4, generator)

    @staticmethod
    def _drawn(count: int, generator: torch.Generator) -> LabelledImages:
        images = torch.randint(0, 40, (count, 3, 64, 48), generator=generator, dtype=torch.uint8)
        labels, blue = torch.arange(count) % 2, torch.arange(count) // 2 % 2
        places = torch.randint(4, 36, (count,), generator=generator).tolist()
        for image, label, channel, at in zip(images, labels.tolist(), (blue * 2).tolist(), places, strict=True):
            bar = image[channel, :, at : at + 6] if label == 0 else image[channel, at : at + 6]
            bar += 200
        return LabelledImages(images, labels, {"hue": ["blue" if b else "red" for b in blue.tolist()]})


class ConvAutoencoder(nn.Module):
    """Two convolutions to a code of `width` channels, and two back; the sides of an image must be multiples of 4."""

    def __init__(self, shape: list[int], width: Annotated[int, Between(2, 512)] = 8) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(shape[0], 16, 4, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(16, width, 4, 2, 1)
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(width, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, shape[0], 4, 2, 1)
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the reconstructions of images `(batch, 3, height, width)`."""
        return self.decoder(self.encoder(images))  # type: ignore[no-any-return]


class WorstPixel(Measure):
    """The largest error of a pixel."""

    name, unit = "worst_pixel", "pixel, pixels in [-1, 1]"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs - targets).abs().amax(1)


@dataclass
class Noise(AblationMethod):
    """Replace the region's activations by noise of their own size."""

    name = "noise"
    scale: Annotated[float, Between(0, 10)] = 1.0

    def of(self, region: str, task: Subject) -> Ablation:
        def values(site: object, activation: torch.Tensor) -> torch.Tensor:
            here = task.router.regions[region].at(activation, site)  # type: ignore[arg-type]
            drawn = torch.randn(here.shape, generator=torch.Generator().manual_seed(task.config.seed))
            return here.std() * self.scale * drawn

        return Ablation(region, replaced(task.router.regions[region], values))


@dataclass
class Interpolate(Step):
    """Measure how far apart the codes of pairs of test images are."""

    pairs: Annotated[int, Between(1, 1000)] = 8
    units = {"code_distance": "L2 norm, mean over pairs"}  # noqa: RUF012

    def run(self, run: RunState) -> Iterable[Training]:
        images = run.task.example()[: 2 * self.pairs]
        with torch.no_grad():
            codes = run.task.model.get_submodule("encoder")(images).flatten(1)
        distance = (codes[::2] - codes[1::2]).norm(dim=1).mean()
        run.record("test", ("all", Head("code", "all"), "code_distance", float(distance)))
        return ()


def error_histogram(run: RunData, bins: int = 20) -> Figure:
    """Distribution of the errors of the decoder on the shown images."""
    figure, axes = plt.subplots(layout="constrained")
    axes.hist((run.arrays["head/decoder/all"] - run.arrays["images"]).ravel(), bins=bins)
    axes.set_xlabel("error of a pixel")
    return figure
