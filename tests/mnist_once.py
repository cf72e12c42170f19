"""Read and hash the packaged MNIST once in a process: each run of a few images would read all 70,000."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from gradroute.data.images.dataset import Images
from gradroute.data.images.torchvision import MNIST


def mnist_once(kept: dict[str, Images]) -> Callable[..., Images]:
    """Return MNIST's `tensors` that reads and hashes the packaged files once, and gives parts of what it has read."""
    original = MNIST.tensors

    def tensors(self: MNIST, train_limit: int | None = None, test_limit: int | None = None, **supplied: Any) -> Images:
        if self.root is not None or self.metadata is not None:
            return original(self, train_limit, test_limit, **supplied)
        if "whole" not in kept:
            kept["whole"] = original(self)
        whole = kept["whole"]
        return replace(
            whole, train_images=whole.train_images[:train_limit], train_labels=whole.train_labels[:train_limit],
            test_images=whole.test_images[:test_limit], test_labels=whole.test_labels[:test_limit],
        )  # fmt: skip

    return tensors
