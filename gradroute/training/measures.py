"""Measures: each keeps a name, a unit and a function of outputs and targets together."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import nn


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """Return `values` in float32 if their precision is lower, such as from autocast; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


CHUNK = 2**18  # numbers that one operation takes at a time on a CPU, to stay in its cache


class _MeanAbsolute(torch.autograd.Function):
    """Mean |outputs - targets| of each row; the forward pass also makes the gradient, as signs in the outputs' type."""

    generate_vmap_rule = True

    @staticmethod
    def forward(outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = len(outputs) if outputs.is_cuda else max(1, CHUNK // outputs.shape[1])
        signs, means = torch.empty_like(outputs), list[torch.Tensor]()
        for some, own, made in zip(outputs.split(rows), targets.split(rows), signs.split(rows), strict=True):
            difference = at_least_float32(some) - own
            means.append(difference.abs().mean(1))
            made.copy_(difference.sign_())
        return torch.cat(means), signs

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[torch.Tensor, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        (signs,) = ctx.saved_tensors
        return signs * (gradients[0][:, None] / signs.shape[1]).to(signs.dtype), None


class Measure(ABC):
    """A measure of a model's outputs; the mean over the points of a group is reported.

    It can also be the error that a task minimises, as `losses.error`. The run supplies the constructor's parameters
    `shape`, of an image, and `classes`, if it has them.

    Attributes: `name`, in the metrics; `unit`; `higher_is_better`.
    """

    name: ClassVar[str]
    unit: ClassVar[str]
    higher_is_better: ClassVar[bool] = False

    @abstractmethod
    def __call__(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the value for each point, `(n,)`.

        Args:
            outputs, targets: for an autoencoder both `(n, pixels)`, pixels in [-1, 1]; for a classifier logits
                `(n, classes)` and labels `(n,)`; for a language model logits `(n, vocabulary)` and tokens `(n,)`.
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
        if not torch.is_grad_enabled() or not len(outputs):
            return (at_least_float32(outputs) - targets).abs().mean(1)
        means: torch.Tensor = _MeanAbsolute.apply(outputs, targets)[0]
        return means


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
