"""Classification: images, labelled by the decoder and by a certificate per region (GR App. B.1)."""

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

SHOWN = 2048  # images whose activations an ablation by mean or resampling draws from


class Classification(ImageTask):
    """Images to classify. Raises: UserError for every mistake in the configuration or the data.

    Args:
        augment: random crops and flips of the training images; null is none.
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
        """Images `(n, channels, height, width)`, in the order of memory that is faster."""
        return super().shaped(images).contiguous(memory_format=self.memory_format)

    @property
    def memory_format(self) -> torch.memory_format:
        """Channels last where that is faster: not in bfloat16 on a CPU (there 111 to 85 ms an update were measured)."""
        first = self.device.type == "cpu" and self.config.trainer.precision == "bfloat16"
        return torch.contiguous_format if first or self.flat else torch.channels_last

    def built(self) -> None:
        """Let the model fit its normalisation to the training images, if it has one."""
        super().built()
        fit = getattr(self.model, "fit", None)
        if callable(fit):
            fit(self.train_images)
        for module in (self.model, self.certificates):
            module.to(memory_format=self.memory_format)

    def objective(self) -> ClassificationObjective:
        """The training loss."""
        parts = (self.model, self.certificates, self.router)
        return ClassificationObjective(*parts, self.config.losses, **self.objective_options())

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Images `(batch, channels, height, width)`, augmented, their labels and their group numbers."""
        return self._augmented(chosen), self.data.train_labels[chosen], self.routed[chosen]

    def _augmented(self, chosen: torch.Tensor) -> torch.Tensor:
        images = self.train_images[chosen]
        changed = images if self.augment is None else augmented(images, self.augment)
        return changed.contiguous(memory_format=self.memory_format)

    def targets(self, train: bool) -> torch.Tensor:
        """The labels."""
        return self.data.train_labels if train else self.data.test_labels

    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """What a region shows of images to train on, augmented anew each time, and their labels, by their row numbers.

        Kept for all images they would fill the memory.
        """
        found = self.router.regions[region]

        def batch(chosen: torch.Tensor) -> Batch:
            with computing(self.config.trainer.precision, self.device):
                seen = activations_at(self.model, found.sites, self._augmented(chosen))
            return found.select(seen), self.data.train_labels[chosen]

        return batch

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Activations of the first training images at some sites, by name; of all they would fill the memory."""
        return activations_at(self.model, sites, self.train_images[:SHOWN])

    def unseen(self, chosen: torch.Tensor) -> float:
        """The share that is wrong of always naming the most frequent label."""
        counts = self.data.test_labels[chosen].bincount()
        return 1 - float(counts.max() / counts.sum())

    def scored_error(self, value: float) -> float:
        """The share that is wrong."""
        return 1 - value

    def pictured(self, units: torch.Tensor) -> torch.Tensor:
        """Each channel's mean over positions, `(n, units)`."""
        return units.flatten(1, -2).mean(1) if units.dim() > 2 else units

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What every report draws from, and each head's confusion matrix `(true, named)`, counts of test images."""
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
