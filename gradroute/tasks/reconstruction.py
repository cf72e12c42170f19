"""Reconstruct images by the decoder and by one certificate per region (GR App. B)."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from gradroute.config.limits import require
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing.ablation import Ablation
from gradroute.tasks.evaluation import CHUNK, activations_at
from gradroute.tasks.image_objectives import ReconstructionObjective
from gradroute.tasks.images import ImageTask
from gradroute.training.measures import MAE, MSE
from gradroute.training.objectives import Batch


class Reconstruction(ImageTask):
    """The task of reconstructing images. Raises: UserError for every mistake in the configuration or the data."""

    kind = "reconstruction"
    plots = (
        "gradroute.reporting.plots_images.loss_per_label", "gradroute.reporting.plots_images.reconstructions",
        "gradroute.reporting.plots_images.training_curves",
    )  # fmt: skip
    default_error = MAE
    default_measures = (MSE, MAE)
    scored = "mse"

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that do not fit an autoencoder."""
        super().check(config)
        groups, decoders = len(config.routing.groups), config.model.get("decoders", 1)
        right = (1, groups, groups + 1)  # one more if some points are in no group, which only the data show
        require(decoders in right, "model.decoders", decoders, f"1, or {groups}, one for each group")

    def check_groups(self) -> None:
        """Raise UserError for several decoders, unless there is one for each group and every point is labelled."""
        decoders = self.config.model.get("decoders", 1)
        if decoders not in (1, len(self.names)) or (decoders > 1 and bool((self.routed < 0).any())):
            right = f"1, or {len(self.names)}, the number of groups, with every point labelled"
            raise UserError(f"model.decoders={decoders}: must be {right}")

    def objective(self) -> ReconstructionObjective:
        """Return the training loss."""
        parts, several = (self.model, self.certificates, self.router), self.takes_groups
        options = self.objective_options()
        return ReconstructionObjective(*parts, self.config.losses, several_decoders=several, **options)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return images in the model's input shape, and their group numbers."""
        return self.train_images[chosen], self.routed[chosen]

    def targets(self, train: bool) -> torch.Tensor:
        """Return the images themselves, `(n, pixels)`."""
        return self.data.train_images if train else self.data.test_images

    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """Return a function from row numbers of training images to the region's activations and the images."""
        found = self.router.regions[region]
        seen = found.select(activations_at(self.model, found.sites, self.train_images))
        return lambda chosen: (seen[chosen], self.data.train_images[chosen])

    def unseen(self, chosen: torch.Tensor) -> float:
        """Return the mean squared error of the training data's mean image."""
        return float(self._mean_image_errors[chosen].mean())

    @cached_property
    def _mean_image_errors(self) -> torch.Tensor:
        """Squared error of the training data's mean image on each test image, `(n,)`."""
        mean = self.data.train_images.mean(0)
        return torch.cat([(chunk - mean).square().mean(1) for chunk in self.data.test_images.split(CHUNK)])

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the data of every report, and one image per label through every head."""
        arrays, names = self.shown()
        labels = self.data.test_labels
        first = torch.cat([torch.nonzero(labels == label).flatten()[:1] for label in self.data.labels])
        arrays |= {"image_labels": labels[first], "images": self.data.test_images[first]}
        heads = self.heads(ablations, self.test_images[first], self.test_groups[first])
        return arrays | {f"head/{head.name}/{head.region}": output for head, output in heads.items()}, names
