"""Image data sets, whole and in memory: MNIST from inside the package, others through torchvision or from files."""

import csv
import hashlib
import io
import lzma
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import platformdirs
import torch
from filelock import FileLock

from gradroute.config.schema import DatasetConfig
from gradroute.data.images.files import Part, read_cifar, read_folder, read_strips
from gradroute.errors import UserError, unknown
from gradroute.records.safe_reading import open_plain

PACKAGED = Path(__file__).parent / "mnist"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
CIFAR_FILES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}


@dataclass(frozen=True)
class Source:
    """A data set: torchvision's class, what one label is called, the shape of an image, the number of labels."""

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


@dataclass
class Images:
    """A data set as tensors: images `(n, pixels)` float32 in [-1, 1], labels `(n,)` int64.

    shape: of an image, `(height, width)`, or `(3, height, width)` if it is coloured. classes: the number of labels,
    of which the images may have fewer.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    label_noun: str
    shape: tuple[int, ...]
    classes: int
    sha256: str
    train_columns: dict[str, list[str]] = field(default_factory=dict)  # metadata, a text per image
    test_columns: dict[str, list[str]] = field(default_factory=dict)

    @property
    def labels(self) -> list[int]:
        """Every label that occurs in the training images, ascending."""
        return sorted(int(label) for label in self.train_labels.unique())

    def to(self, device: torch.device) -> "Images":
        """The same data with its tensors on `device`."""
        tensors = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in tensors})


def cache_dir() -> Path:
    """Where data sets are unpacked: `GRADROUTE_DATA`, else the platform's cache folder."""
    return Path(os.environ.get("GRADROUTE_DATA") or platformdirs.user_cache_dir("gradroute"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unpack(name: str, folder: Path) -> None:
    """Write one packaged file into `folder`: aside first, checked, then renamed over the target."""
    packed = PACKAGED / f"{name}.xz"
    try:
        content = lzma.decompress(packed.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UserError(
            f"{packed}: the packaged data file is missing or damaged ({error}); reinstall gradroute"
        ) from None
    if hashlib.sha256(content).hexdigest() != MNIST_SHA256[name]:
        raise UserError(f"{packed}: the packaged data file has the wrong SHA-256; reinstall gradroute")
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
        file.write(content)
    os.chmod(file.name, 0o644)
    os.replace(file.name, folder / name)


def unpack_mnist(root: Path) -> None:
    """Make `root/MNIST/raw` hold the four canonical files; a missing or damaged one is unpacked anew."""
    folder = root / "MNIST" / "raw"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "MNIST" / ".lock"):  # ten processes on a cold cache unpack once
            for name, sha256 in MNIST_SHA256.items():
                if not (folder / name).is_file() or _sha256(folder / name) != sha256:
                    _unpack(name, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the data cache cannot be written ({error.strerror}); set GRADROUTE_DATA to a folder that can"
        ) from None


def _check_given_mnist(root: Path) -> None:
    for name, sha256 in MNIST_SHA256.items():
        path = root / "MNIST" / "raw" / name
        if not path.is_file():
            raise UserError(f"dataset.root={root}: {path} is missing; leave dataset.root out to use the packaged files")
        if _sha256(path) != sha256:
            raise UserError(f"dataset.root={root}: {path} is damaged (SHA-256 differs from the canonical file)")


def load(config: DatasetConfig, train_limit: int | None = None, test_limit: int | None = None) -> Images:
    """Read a data set; a limit keeps the first images only.

    Raises: UserError for an unknown name, missing or damaged files, or a download that fails.
    """
    if config.name not in SOURCES:
        raise unknown("dataset", config.name, SOURCES)
    source = SOURCES[config.name]
    parts = _parts(config, source)
    digest = hashlib.sha256()
    tensors: list[torch.Tensor] = []
    for (pixels, labels), limit in zip(parts, (train_limit, test_limit), strict=True):
        digest.update(pixels.contiguous().numpy().data)
        digest.update(labels.contiguous().numpy().data)
        tensors += [pixels[:limit].flatten(1).float().div_(127.5).sub_(1), labels[:limit]]
    train_images, train_labels, test_images, test_labels = tensors
    train_columns, test_columns = (
        _columns(config.metadata, name, len(labels), limit)
        for name, (_, labels), limit in zip(("train", "test"), parts, (train_limit, test_limit), strict=True)
    )
    return Images(
        train_images,
        train_labels,
        test_images,
        test_labels,
        label_noun=source.noun,
        shape=source.shape,
        classes=source.classes,
        sha256=digest.hexdigest(),
        train_columns=train_columns,
        test_columns=test_columns,
    )


def _parts(config: DatasetConfig, source: Source) -> list[Part]:
    """What to train and to test on, as in `gradroute.data.images.files`. Raises: UserError."""
    root = Path(config.root).expanduser() if config.root else cache_dir()
    download = config.root is None and config.name != "mnist"
    if config.format != "torchvision":
        parts = (read_folder if config.format == "folder" else read_strips)(root, source.shape)
    elif source.class_name.startswith("CIFAR"):
        parts = _through(config, root, download, lambda: read_cifar(source.class_name, root, download))
    else:
        if config.name == "mnist":
            _check_given_mnist(root) if config.root else unpack_mnist(root)
        parts = _through(config, root, download, lambda: _read_raw(source.class_name, root, download))
    for images, labels in parts:
        if images.shape[1:] != source.shape:
            raise UserError(f"dataset={config.name}: images of {list(images.shape[1:])}; right is {list(source.shape)}")
        if bool(((labels < 0) | (labels >= source.classes)).any()):
            odd = int(labels[(labels < 0) | (labels >= source.classes)][0])
            raise UserError(f"dataset={config.name}: a label is {odd}; right are 0 to {source.classes - 1}")
    return parts


def _columns(folder: str | None, name: str, images: int, limit: int | None) -> dict[str, list[str]]:
    """The columns of `folder/<name>.csv`. Raises: UserError if it cannot be read or has another number of lines."""
    if folder is None:
        return {}
    path = Path(folder).expanduser() / f"{name}.csv"
    try:
        with open_plain(path) as file:
            header, *lines = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
    except (UserError, OSError, ValueError, csv.Error) as error:
        raise UserError(f"dataset.metadata={folder}: {path} cannot be read ({error})") from None
    odd = next((number for number, line in enumerate(lines, 2) if len(line) != len(header)), None)
    if len(lines) != images or odd:
        fault = f"line {odd} has not {len(header)} cells" if odd else f"{len(lines)} lines for {images} images"
        raise UserError(f"dataset.metadata={folder}: {path}: {fault}; give a header and one line per image")
    return {column: [line[i] for line in lines[:limit]] for i, column in enumerate(header)}


def _read_raw(class_name: str, root: Path, download: bool) -> list[Part]:
    """Images `(n, height, width)` uint8 and labels `(n,)` of the MNIST family, from the raw files alone.

    torchvision's classes would prefer a `processed` folder beside them, which nothing has checked.
    """
    from torchvision.datasets import mnist

    raw, parts = root / class_name / "raw", []
    for train, prefix in ((True, "train"), (False, "t10k")):
        if download:
            getattr(mnist, class_name)(root, train=train, download=True)
        paths = [raw / f"{prefix}-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1")]
        for path in paths:
            open_plain(path).close()
        images, labels = mnist.read_image_file(str(paths[0])), mnist.read_label_file(str(paths[1]))
        if len(images) != len(labels) or not images.numel():
            raise ValueError(f"{len(images)} images and {len(labels)} labels")
        parts.append((images, labels.long()))
    return parts


def _through(config: DatasetConfig, root: Path, download: bool, read: Callable[[], list[Part]]) -> list[Part]:
    """What torchvision reads; whatever it raises becomes a UserError of one line."""
    try:
        return read()
    except (
        UserError, RuntimeError, OSError, ValueError, EOFError, AssertionError, TypeError, KeyError, ArithmeticError,
    ) as error:  # fmt: skip
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        class_name = SOURCES[config.name].class_name
        files = CIFAR_FILES.get(config.name, f"{class_name}/raw")
        if download:
            advice = f"the download failed; give a folder with dataset.root= ({files}/… inside it)"
        else:
            advice = f"no readable {files} files in {root}"
        raise UserError(f"dataset={config.name}: {advice} [{reason}]") from None
