"""The user's own folder of images: PNG or JPEG, grey or in colour, 8 or 16 bits, one folder per class."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch

from gradroute.config.limits import Between, Items, Text
from gradroute.data.columns import Folder, read_columns
from gradroute.data.images.dataset import PARTS, ImageDataset, LabelledImages
from gradroute.data.images.decoding import FORMATS, decode, entries
from gradroute.data.images.strips import channels_first
from gradroute.errors import UserError
from gradroute.records.safe_reading import open_plain

SIDE = 4096  # pixels
RIGHT = "give train/<class>/*.png and test/<class>/*.png, or <class>/*.png; .jpg works, too"
Labelled = list[tuple[Path, int]]


class ImageFolder(ImageDataset):
    """Images in `root/train/<class>/` and `root/test/<class>/`, or in `root/<class>/`, of which a share is to test on.

    Labels are the folders' names if these are whole numbers, else their positions in alphabetical order. Hidden files
    are skipped. Groups can be made by the columns `file` and `class`, and by those of `table`.

    Args:
        root: the folder.
        resize: height and width to scale all images to; null requires images of one size.
        colour: whether to read colours; null reads them if any image has some.
        test_share: share of each class to test on, if there are no folders `train` and `test`.
        table: a CSV file with a column `file`, paths from `root`; its other columns become metadata.
        metadata: a folder with `train.csv` and `test.csv`: a header, and a line for each image in the data's order.
        classes: the number of labels; null is the largest label plus one.
    """

    def __init__(
        self,
        root: Annotated[str, Text("a folder's path")],
        resize: Annotated[list[Annotated[int, Between(1, SIDE)]] | None, Items(2, 2, right="[height, width]")] = None,
        colour: bool | None = None,
        test_share: Annotated[float, Between(0.0001, 0.9999)] = 0.2,
        table: Annotated[str | None, Text("a CSV file's path")] = None,
        metadata: Folder = None,
        classes: Annotated[int | None, Between(1, 100_000)] = None,
    ) -> None:
        self.root, self.colour, self.test_share = Path(root).expanduser(), colour, test_share
        self.resize = (resize[0], resize[1]) if resize is not None else None
        self.table, self.metadata, self.classes = table, metadata, classes

    def load(self) -> tuple[LabelledImages, LabelledImages]:
        """Return the images and their columns. Raises: UserError for another folder layout, or a damaged file."""
        files = self._files()
        if self.classes is None:
            self.classes = max(label for part in files for _, label in part) + 1
        arrays = [self._read([path for path, _ in part]) for part in files]
        first = arrays[0][0].shape[:2]
        for part, own in zip(files, arrays, strict=True):
            for (path, _), array in zip(part, own, strict=True):
                if array.shape[:2] != first:
                    is_, right = (" x ".join(map(str, shape[::-1])) for shape in (array.shape[:2], first))
                    raise UserError(
                        f"{path}: the image is {is_}, others are {right}; give dataset.resize=[height,width]"
                    )
        images = _stacked(arrays)
        listed = self._listed()
        found = []
        for part, tensor, what in zip(files, images, PARTS, strict=True):
            places = [path.relative_to(self.root).as_posix() for path, _ in part]
            columns = {"file": places, "class": [path.parent.name for path, _ in part]}
            columns |= {name: [rows.get(place, "") for place in places] for name, rows in listed.items()}
            columns |= read_columns(self.metadata, what, len(part))
            labels = torch.tensor([label for _, label in part], dtype=torch.int64)
            found.append(LabelledImages(tensor, labels, columns))
        return found[0], found[1]

    def _files(self) -> tuple[Labelled, Labelled]:
        """Return the training and the test files, each with its label."""
        folders = [path for path in entries(self.root, RIGHT) if path.is_dir()]
        if {path.name for path in folders} >= set(PARTS):
            parts = [[p for p in entries(self.root / part, RIGHT) if p.is_dir()] for part in PARTS]
            names = [sorted(path.name for path in part) for part in parts]
            if not names[0] or not set(names[1]) <= set(names[0]):
                what = (
                    f"test/{min(set(names[1]) - set(names[0]))} is not in train" if names[0] else "no folder in train"
                )
                raise UserError(f"{self.root}: {what}; {RIGHT}")
            train, test = (self._labelled(part, names[0]) for part in parts)
            return train, test
        if not folders:
            raise UserError(f"{self.root}: has no folder of images; {RIGHT}")
        labelled = self._labelled(folders, sorted(path.name for path in folders))
        return self._shared_out(labelled)

    def _labelled(self, folders: Sequence[Path], names: Sequence[str]) -> Labelled:
        numbers = all(name.isdecimal() and len(name) < 6 for name in names)
        label_of = {name: int(name) if numbers else place for place, name in enumerate(names)}
        found = [
            (file, label_of[folder.name])
            for folder in folders
            for file in entries(folder, RIGHT)
            if file.suffix.lower() in FORMATS
        ]
        if not found:
            raise UserError(f"{self.root}: no .png or .jpg in {folders[0] if folders else 'test'}; {RIGHT}")
        return found

    def _shared_out(self, labelled: Labelled) -> tuple[Labelled, Labelled]:
        """Split off a share of each class to test on: at least one image, and always the same ones."""
        train: Labelled = []
        test: Labelled = []
        for label in sorted({label for _, label in labelled}):
            own = [entry for entry in labelled if entry[1] == label]
            if len(own) < 2:
                raise UserError(f"{own[0][0].parent}: has one image, but training and testing need one each; add one")
            count = min(len(own) - 1, max(1, round(self.test_share * len(own))))
            chosen = set(torch.randperm(len(own), generator=torch.Generator().manual_seed(0))[:count].tolist())
            test += [entry for place, entry in enumerate(own) if place in chosen]
            train += [entry for place, entry in enumerate(own) if place not in chosen]
        return train, test

    def _read(self, paths: Sequence[Path]) -> list[Any]:
        return [decode(path, self.colour, resize=self.resize) for path in paths]

    def _listed(self) -> dict[str, dict[str, str]]:
        """Return the columns of `table`, each by file. Raises: UserError if it cannot be read."""
        if self.table is None:
            return {}
        path = Path(self.table).expanduser()
        try:
            with open_plain(path) as file:
                header, *lines = csv.reader(io.TextIOWrapper(file, "utf-8", newline=""))
            rows = [dict(zip(header, line, strict=True)) for line in lines]
        except (UserError, OSError, ValueError, csv.Error) as error:
            raise UserError(f"dataset.table={self.table}: cannot be read ({error})") from None
        if "file" not in header:
            raise UserError(f"dataset.table={self.table}: has no column 'file'; its columns are {', '.join(header)}")
        return {name: {row["file"]: row[name] for row in rows} for name in header if name != "file"}


def _stacked(parts: Sequence[Sequence[Any]]) -> list[torch.Tensor]:
    """Stack images of each part: all in colour if any is, all float32 in [-1, 1] if any has 16 bits."""
    every = [array for part in parts for array in part]
    coloured = any(array.ndim == 3 for array in every)
    deep = any(array.dtype == np.uint16 for array in every)

    def same(array: Any) -> Any:
        if deep:
            largest = 65535 if array.dtype == np.uint16 else 255
            array = (array.astype(np.float32) / (largest / 2) - 1).astype(np.float32)
        return np.repeat(array[..., None], 3, -1) if coloured and array.ndim == 2 else array

    return [channels_first(torch.from_numpy(np.stack([same(array) for array in part]))) for part in parts]
