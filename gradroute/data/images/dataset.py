"""Labelled images, and the interface of a data set of images."""

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from gradroute.data.base import Dataset
from gradroute.errors import UserError

PARTS = ("train", "test")


@dataclass(frozen=True)
class LabelledImages:
    """One part of a data set, for training or for testing.

    images: `(n, height, width)`, or `(n, 3, height, width)` in colour; uint8, or floats in [-1, 1].
    labels: `(n,)` int64, 0 or more.
    columns: metadata by name, one text per image.
    """

    images: torch.Tensor
    labels: torch.Tensor
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)


@dataclass
class Images:
    """A data set as a task takes it: images `(n, pixels)` float32 in [-1, 1], labels `(n,)` int64.

    shape: of one image, `(height, width)`, or `(3, height, width)` in colour. classes: the number of labels, some of
    which may not occur. label_noun: what one label is called, such as `digit`.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    label_noun: str
    shape: tuple[int, ...]
    classes: int
    sha256: str
    train_columns: dict[str, list[str]] = field(default_factory=dict)
    test_columns: dict[str, list[str]] = field(default_factory=dict)

    @property
    def labels(self) -> list[int]:
        """Every label that occurs in the training images, ascending."""
        return sorted(int(label) for label in self.train_labels.unique())

    def at(self, places: torch.Tensor) -> "Images":
        """Return the same data with the training images at these places, `(n,)`."""
        rows = places.tolist()
        columns = {name: [values[row] for row in rows] for name, values in self.train_columns.items()}
        images, labels = self.train_images[places], self.train_labels[places]
        return replace(self, train_images=images, train_labels=labels, train_columns=columns)

    def to(self, device: torch.device) -> "Images":
        """Return the same data with its tensors on `device`."""
        tensors = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


class ImageDataset(Dataset):
    """Images with labels. A subclass defines `load`.

    Attributes: `label_noun`, what one label is called; `classes`, the number of labels, or None for the largest label
    plus one.
    """

    label_noun: str = "class"
    classes: int | None = None

    @abstractmethod
    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the training and the test images. Raises: UserError if they cannot be read."""

    def tensors(self, train_limit: int | None = None, test_limit: int | None = None, **supplied: Any) -> Images:
        """Read, check and scale the images. Raises: UserError for invalid or inconsistent images, labels or columns."""
        parts = self.load()
        _check_parts(parts, type(self).__name__)
        digest = hashlib.sha256()
        tensors: list[torch.Tensor] = []
        for part, limit in zip(parts, (train_limit, test_limit), strict=True):
            for tensor in (part.images, part.labels):
                digest.update(tensor.contiguous().numpy().data)
            tensors += [_scaled(part.images[:limit]), part.labels[:limit]]
        columns = [
            {name: list(values)[:limit] for name, values in part.columns.items()}
            for part, limit in zip(parts, (train_limit, test_limit), strict=True)
        ]
        largest = max(int(part.labels.max()) for part in parts)
        classes = largest + 1 if self.classes is None else self.classes
        if largest >= classes:
            raise UserError(f"dataset: a label is {largest}; labels must be from 0 to {classes - 1}")
        shape = tuple(parts[0].images.shape[1:])
        return Images(
            tensors[0], tensors[1], tensors[2], tensors[3], self.label_noun, shape, classes, digest.hexdigest(),
            columns[0], columns[1],
        )  # fmt: skip


def _scaled(images: torch.Tensor) -> torch.Tensor:
    """Return images as `(n, pixels)` float32 in [-1, 1]."""
    flat = images.flatten(1).float()
    return flat if images.is_floating_point() else flat.div_(127.5).sub_(1)


def _check_parts(parts: tuple[LabelledImages, LabelledImages], name: str) -> None:
    """Raise UserError unless both parts hold images of one shape, each with a label."""
    shape = parts[0].images.shape[1:]
    for part, what in zip(parts, PARTS, strict=True):
        images, labels, where = part.images, part.labels, f"dataset ({name}), {what} images"
        kinds = images.dtype == torch.uint8 or images.dtype == torch.float32
        if not len(images) or images.dim() not in (3, 4) or not kinds or (images.dim() == 4 and images.shape[1] != 3):
            right = "(n, height, width) or (n, 3, height, width), uint8 or float32 in [-1, 1], at least one"
            raise UserError(f"{where}: {images.dtype} of shape {tuple(images.shape)}; must be {right}")
        if images.is_floating_point() and not bool((images.abs() <= 1 + 1e-6).all()):
            raise UserError(f"{where}: pixels outside of [-1, 1]; scale them")
        if images.shape[1:] != shape:
            raise UserError(f"{where}: of shape {tuple(images.shape[1:])}; training images are of {tuple(shape)}")
        if labels.shape != (len(images),) or labels.dtype != torch.int64:
            right = f"int64 of shape ({len(images)},)"
            raise UserError(f"{where}: labels are {labels.dtype} of shape {tuple(labels.shape)}; must be {right}")
        if bool((labels < 0).any()):
            raise UserError(f"{where}: a label is {int(labels.min())}; labels must be 0 or more")
        for column, values in part.columns.items():
            if len(values) != len(images):
                raise UserError(f"{where}: column '{column}' has {len(values)} values for {len(images)} images")
