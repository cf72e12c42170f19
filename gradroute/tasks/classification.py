"""Classify images by the decoder and by one certificate per region (GR App. B.1)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradroute.config.schema import Config
from gradroute.data.images.dataset import Images
from gradroute.routing import Site
from gradroute.routing.ablation import Ablation
from gradroute.tasks.augmentation import Augmentation, augmented
from gradroute.tasks.evaluation import CHUNK, Head, activations_at
from gradroute.tasks.image_checks import norm_of
from gradroute.tasks.image_objectives import ClassificationObjective
from gradroute.tasks.images import ImageTask
from gradroute.training.devices import computing
from gradroute.training.measures import ACCURACY, CROSS_ENTROPY
from gradroute.training.objectives import Batch

SHOWN = 2048  # images whose activations the mean and resample ablations use


class Classification(ImageTask):
    """The task of classifying images. Raises: UserError for every mistake in the configuration or the data.

    Args:
        augment: random crops and flips of the training images; null for none.
    """

    kind = "classification"
    plots = (
        "gradroute.reporting.plots_classification.accuracy_per_label",
        "gradroute.reporting.plots_classification.confusion",
        "gradroute.reporting.plots_classification.training_curves",
    )
    default_error = CROSS_ENTROPY
    default_measures = (ACCURACY, CROSS_ENTROPY)
    scored = "accuracy"
    classifies = True

    def __init__(
        self, config: Config, data: Images | None = None, run: Path | None = None, augment: Augmentation | None = None
    ) -> None:
        self.augment = augment
        super().__init__(config, data, run)

    def shaped(self, images: torch.Tensor) -> torch.Tensor:
        """Return images `(n, channels, height, width)` in the faster memory format."""
        return super().shaped(images).contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last, except in bfloat16 on a CPU, where it was slower (111 against 85 ms per update)."""
        first = self.device.type == "cpu" and self.config.trainer.precision == "bfloat16"
        return torch.contiguous_format if first or self.flat else torch.channels_last

    def built(self) -> None:
        """Fit the model's normalisation, if it has one, to the training images, and set the memory format."""
        super().built()
        fit = getattr(self.model, "fit", None)
        if callable(fit):
            fit(self.train_images)
        for module in (self.model, self.certificates):
            module.to(memory_format=self.memory_format)

    def objective(self) -> ClassificationObjective:
        """Return the training loss."""
        parts = (self.model, self.certificates, self.router)
        return ClassificationObjective(*parts, self.config.losses, **self.objective_options())

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Return augmented images `(batch, channels, height, width)`, their labels and their group numbers."""
        return self._augmented(chosen), self.data.train_labels[chosen], self.routed[chosen]

    def _augmented(self, chosen: torch.Tensor) -> torch.Tensor:
        images = self.train_images[chosen]
        changed = images if self.augment is None else augmented(images, self.augment)
        return changed.contiguous(memory_format=self.memory_format)

    def targets(self, train: bool) -> torch.Tensor:
        """Return the labels of the training or the test images."""
        return self.data.train_labels if train else self.data.test_labels

    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """Return a function from row numbers of training images to the region's activations and the labels.

        It augments the images anew at every call, and stores nothing: activations of all images would fill the memory.
        """
        found = self.router.regions[region]

        def batch(chosen: torch.Tensor) -> Batch:
            with computing(self.config.trainer.precision, self.device):
                seen = activations_at(self.model, found.sites, self._augmented(chosen))
            return found.select(seen), self.data.train_labels[chosen]

        return batch

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Return activations of the first training images, by site name; those of all images would fill the memory."""
        return activations_at(self.model, sites, self.train_images[:SHOWN])

    def unseen(self, chosen: torch.Tensor) -> float:
        """Return the share of wrong labels if the most frequent one is always predicted."""
        counts = self.data.test_labels[chosen].bincount()
        return 1 - float(counts.max() / counts.sum())

    def scored_error(self, value: float) -> float:
        """Convert an accuracy to the share of wrong labels."""
        return 1 - value

    def pictured(self, units: torch.Tensor) -> torch.Tensor:
        """Return each channel's mean over positions, `(n, units)`."""
        return units.flatten(1, -2).mean(1) if units.dim() > 2 else units

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the data of every report, and each head's confusion matrix `(true, predicted)`, in test images."""
        arrays, names = self.shown()
        classes = self.data.classes
        matrices: dict[Head, torch.Tensor] = {}
        data = (self.test_images, self.data.test_labels, self.test_groups)
        for images, labels, groups in zip(*(tensor.split(CHUNK) for tensor in data), strict=True):
            for head, logits in self.heads(ablations, images, groups).items():
                pairs = labels * classes + logits.argmax(1)
                counts = pairs.bincount(minlength=classes**2).view(classes, -1)
                matrices[head] = matrices[head] + counts if head in matrices else counts
        arrays |= {f"confusion/{head.name}/{head.region}": counts for head, counts in matrices.items()}
        return arrays, names | {"norm": norm_of(self.model)}
