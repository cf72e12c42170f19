"""Measures: a name, a unit and a function of outputs and targets, kept together."""

from abc import ABC, abstractmethod
from typing import ClassVar

import torch
from torch import nn


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32 if they came in less, such as from autocast; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


class Measure(ABC):
    """What is measured of a model's outputs; the mean over the points of a group is reported.

    Also the error that a task minimises, by `losses.error`. A constructor may have the parameters `shape`, of an image,
    and `classes`, which the run supplies.

    Attributes: `name`, in the metrics; `unit`; `higher_is_better`.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The value for each point, `(n,)`.

        Args:
            outputs, targets: of an autoencoder `(n, pixels)` both, pixels in [-1, 1]; of a classifier logits
                `(n, classes)` and labels `(n,)`; of a language model logits `(n, vocabulary)` and tokens `(n,)`.
        """


class SquaredError(Measure):
    """Mean squared error over the pixels of an image."""

    name, unit = "mse", "squared pixel, pixels in [-1, 1]"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return (at_least_float32(outputs) - targets).square().mean(1)


class AbsoluteError(Measure):
    """Mean absolute error over the pixels of an image."""

    name, unit = "mae", "pixel, pixels in [-1, 1]"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return (at_least_float32(outputs) - targets).abs().mean(1)


class Accuracy(Measure):
    """1 for each image whose label has the largest logit, else 0."""

    name, unit, higher_is_better = "accuracy", "share of images, 0 to 1", True

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return (outputs.argmax(1) == targets).float()


class CrossEntropy(Measure):
    """Cross-entropy of logits and labels, in nats."""

    name, unit = "cross_entropy", "nats per token or image"

    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return nn.functional.cross_entropy(at_least_float32(outputs), targets, reduction="none")


MAE, MSE, CROSS_ENTROPY, ACCURACY = AbsoluteError(), SquaredError(), CrossEntropy(), Accuracy()
