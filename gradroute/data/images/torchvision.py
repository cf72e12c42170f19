"""torchvision's data sets: MNIST from the package, the others downloaded or from a folder."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from gradroute.data.columns import Folder, read_columns
from gradroute.data.images.dataset import PARTS, ImageDataset, LabelledImages
from gradroute.data.images.idx import read_idx
from gradroute.data.images.packaged import cache_dir, check_given, unpack_somewhere
from gradroute.data.images.strips import Part, read_strips
from gradroute.errors import UserError, first_line

CIFAR_FILES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@dataclass(frozen=True)
class Source:
    """A data set: torchvision's class, what one label is called, the shape of an image, and the number of labels."""

    class_name: str
    noun: str
    shape: tuple[int, ...]
    classes: int = 10


SOURCES = {
    "mnist": Source("MNIST", "digit", (28, 28)),
    "fashion_mnist": Source("FashionMNIST", "class", (28, 28)),
    "kmnist": Source("KMNIST", "class", (28, 28)),
    "cifar10": Source("CIFAR10", "class", (3, 32, 32)),
    "cifar100": Source("CIFAR100", "class", (3, 32, 32), 100),
}


Name = Literal["mnist", "fashion_mnist", "kmnist", "cifar10", "cifar100"]
Format = Literal["torchvision", "strips"]


class TorchvisionImages(ImageDataset):
    """MNIST, Fashion-MNIST, KMNIST, CIFAR-10 or CIFAR-100.

    Args:
        name: which one.
        root: a folder; null takes the packaged MNIST and downloads the others.
        format: the layout of `root`: that of torchvision, or `strips`, where each row of a PNG is an image, as in npm
            packages.
        metadata: a folder with `train.csv` and `test.csv`: a header, and a line for each image in the data's order.

    Raises: UserError if `format` needs a folder and `root` is null.
    """

    def __init__(
        self,
        name: Name,
        root: Folder = None,
        format: Format = "torchvision",
        metadata: Folder = None,
    ) -> None:
        self.name, self.root, self.format, self.metadata = name, root, format, metadata
        self.source = SOURCES[name]
        self.label_noun, self.classes = self.source.noun, self.source.classes
        if format == "strips" and root is None:
            raise UserError("dataset.root=None: must be a folder with dataset.format=strips")

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return images with metadata. Raises: UserError for missing or damaged files, or a failed download."""
        found = []
        for (images, labels), part in zip(self._parts(), PARTS, strict=True):
            if images.shape[1:] != self.source.shape:
                right = list(self.source.shape)
                raise UserError(f"dataset={self.name}: images of shape {list(images.shape[1:])}; must be {right}")
            if bool(((labels < 0) | (labels >= self.source.classes)).any()):
                odd = int(labels[(labels < 0) | (labels >= self.source.classes)][0])
                largest = self.source.classes - 1
                raise UserError(f"dataset={self.name}: a label is {odd}; labels must be from 0 to {largest}")
            found.append(LabelledImages(images, labels, read_columns(self.metadata, part, len(labels))))
        return found[0], found[1]

    def _parts(self) -> list[Part]:
        root = Path(self.root).expanduser() if self.root else cache_dir()
        download = self.root is None and self.name != "mnist"
        if self.format == "strips":
            return read_strips(root, self.source.shape)
        class_name = self.source.class_name
        if class_name.startswith("CIFAR"):
            return self._through(root, download, lambda: read_cifar(class_name, root, download))
        kept = None
        if self.name == "mnist":
            if self.root:
                check_given(root)
            else:
                root, kept = unpack_somewhere(root)
        try:
            return self._through(root, download, lambda: _read_raw(class_name, root, download))
        finally:
            if kept is not None:
                kept.cleanup()

    def _through(self, root: Path, download: bool, read: Callable[[], list[Part]]) -> list[Part]:
        """Read through torchvision, and turn its exceptions into a UserError of one line."""
        try:
            return read()
        except (
            UserError, RuntimeError, OSError, ValueError, EOFError, AssertionError, TypeError, KeyError,
            ArithmeticError,
        ) as error:  # fmt: skip
            reason = first_line(error) or type(error).__name__
            files = CIFAR_FILES.get(self.name, f"{self.source.class_name}/raw")
            if download:
                advice = f"the download failed; give a folder with dataset.root= ({files}/… inside it)"
            else:
                advice = f"no readable {files} files in {root}"
            raise UserError(f"dataset={self.name}: {advice} [{reason}]") from None


class OneOfTorchvision(TorchvisionImages):
    """One data set of `TorchvisionImages`, with its other arguments."""

    @property
    @abstractmethod
    def which(self) -> Name:
        """The name of the data set."""

    def __init__(self, root: Folder = None, format: Format = "torchvision", metadata: Folder = None) -> None:
        super().__init__(self.which, root, format, metadata)


class MNIST(OneOfTorchvision):
    """Handwritten digits, from the package; the arguments are those of `TorchvisionImages`."""

    which = "mnist"


class FashionMNIST(OneOfTorchvision):
    """Articles of clothing; the arguments are those of `TorchvisionImages`."""

    which = "fashion_mnist"


class KMNIST(OneOfTorchvision):
    """Handwritten Japanese characters; the arguments are those of `TorchvisionImages`."""

    which = "kmnist"


class CIFAR10(OneOfTorchvision):
    """Small photographs in ten classes; the arguments are those of `TorchvisionImages`."""

    which = "cifar10"


class CIFAR100(OneOfTorchvision):
    """Small photographs in a hundred classes; the arguments are those of `TorchvisionImages`."""

    which = "cifar100"


def read_cifar(class_name: str, root: Path, download: bool) -> list[Part]:
    """Read CIFAR10 or CIFAR100 below `root`. Raises: RuntimeError or OSError for missing or damaged files.

    The files are pickles. torchvision compares the MD5 of each with the published one before it loads it.
    """
    from torchvision.datasets import cifar

    parts = []
    for train in (True, False):
        data = getattr(cifar, class_name)(root, train=train, download=download)
        parts.append((torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)))
    return parts


def _read_raw(class_name: str, root: Path, download: bool) -> list[Part]:
    """Read images `(n, height, width)` uint8 and labels `(n,)` of the MNIST family from the raw files alone.

    torchvision's classes would prefer a `processed` folder beside them, which is not verified.
    """
    raw, parts = root / class_name / "raw", []
    for train, prefix in ((True, "train"), (False, "t10k")):
        if download:
            from torchvision.datasets import mnist  # imported late: it takes a second

            getattr(mnist, class_name)(root, train=train, download=True)
        images = read_idx(raw / f"{prefix}-images-idx3-ubyte", 3)
        labels = read_idx(raw / f"{prefix}-labels-idx1-ubyte", 1)
        if len(images) != len(labels) or not images.numel():
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        parts.append((images, labels.long()))
    return parts
