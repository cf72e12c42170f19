"""The problem of an autoencoder: images, reconstructed by the decoder and by a certificate per region (GR App. B)."""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch

from gradroute.errors import UserError
from gradroute.routing.ablation import Ablation
from gradroute.tasks.evaluation import CHUNK, activations_at
from gradroute.tasks.image_objectives import MAE, ReconstructionObjective
from gradroute.tasks.images import ImageProblem
from gradroute.training.objectives import Batch


def _squared(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (reconstruction - images).square().mean(1)


def _absolute(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    return (reconstruction - images).abs_().mean(1)


class Reconstruction(ImageProblem):
    """Images to reconstruct. Raises: UserError for every mistake in the configuration or the data."""

    error = MAE
    measures = {"mse": _squared, "mae": _absolute}  # noqa: RUF012
    scored = "mse"

    def check_groups(self) -> None:
        """Raise UserError for several decoders, but for one a group."""
        decoders = self.config.model.decoders
        if decoders not in (1, len(self.names)) or (decoders > 1 and bool((self.routed < 0).any())):
            right = f"1, or {len(self.names)}, the number of groups, with every point labelled"
            raise UserError(f"model.decoders={decoders}: must be {right}")

    def objective(self) -> ReconstructionObjective:
        """The training loss."""
        parts, several = (self.model, self.certificates, self.router), self.config.model.decoders > 1
        options = self.objective_options()
        return ReconstructionObjective(*parts, self.config.losses, several_decoders=several, **options)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Images `(batch, pixels)` and their group numbers."""
        return self.train_images[chosen], self.routed[chosen]

    def targets(self, train: bool) -> torch.Tensor:
        """The images themselves."""
        return self.train_images if train else self.test_images

    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """What a region shows of images to train on, and these, by their row numbers."""
        found = self.router.regions[region]
        seen = found.select(activations_at(self.model, found.sites, self.train_images))
        return lambda chosen: (seen[chosen], self.train_images[chosen])

    def unseen(self, chosen: torch.Tensor) -> float:
        """Mean squared error of the training data's mean image."""
        return float(self._mean_image_errors[chosen].mean())

    @cached_property
    def _mean_image_errors(self) -> torch.Tensor:
        """Squared error of the training data's mean image on each test image, `(n,)`."""
        mean = self.train_images.mean(0)
        return torch.cat([(chunk - mean).square().mean(1) for chunk in self.test_images.split(CHUNK)])

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What every report draws from, and one image per label through every head."""
        arrays, names = self.shown()
        labels = self.data.test_labels
        first = torch.cat([torch.nonzero(labels == label).flatten()[:1] for label in self.data.labels])
        arrays |= {"image_labels": labels[first], "images": self.test_images[first]}
        heads = self.heads(ablations, self.test_images[first], self.test_groups[first])
        return arrays | {f"head/{head.name}/{head.region}": output for head, output in heads.items()}, names
