"""Anyone's own folder of images, `dataset=images`: what is read of it, and what is refused."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pictures import pictures, scaled, write_png
from PIL import Image

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.data.images.folder import ImageFolder
from gradroute.errors import UserError
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of


def write_parts(folder: Path, names: tuple[str, ...], size: int = 32) -> dict[str, torch.Tensor]:
    """One image of each class in each part; returns them by path."""
    written = {}
    for number, (part, name) in enumerate((part, name) for part in ("train", "test") for name in names):
        written[f"{part}/{name}"] = pictures(number + 1, 3, size, size)[-1]
        write_png(written[f"{part}/{name}"], folder / part / name / "a.png")
    return written


def write_classes(folder: Path, names: tuple[str, ...] = ("cat", "dog"), number: int = 5, size: int = 8) -> None:
    """Some grey images of each class, in one folder for all that is to train and to test on."""
    for place, name in enumerate(names):
        for image, pixels in enumerate(pictures(number + place, 1, size, size)[:number]):
            write_png(pixels, folder / name / f"{image}.png")


def write_grey(values: Any, path: Path, kind: type[np.generic] = np.uint8, **options: Any) -> None:
    """Write a grey image of 8 or 16 bit."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, dtype=kind)).save(path, **options)


def pipe(path: Path) -> None:
    """Replace a file by a pipe, which nobody writes to."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("names", "labels"), [(("cat", "airplane", "dog"), [1, 0, 2]), (("7", "0", "03"), [7, 0, 3])], ids=str
)
def test_folders_are_classes(tmp_path: Path, names: tuple[str, ...], labels: list[int]) -> None:
    written = write_parts(tmp_path, names)
    data = ImageFolder(str(tmp_path)).tensors()
    for part, images, found, columns in (
        ("train", data.train_images, data.train_labels, data.train_columns),
        ("test", data.test_images, data.test_labels, data.test_columns),
    ):
        for name, label in zip(names, labels, strict=True):
            (row,) = (found == label).nonzero().flatten()
            torch.testing.assert_close(images[row], scaled(written[f"{part}/{name}"][None])[0])
            assert columns["class"][row] == name and columns["file"][row] == f"{part}/{name}/a.png"
    assert data.classes == max(labels) + 1 and data.shape == (3, 32, 32) and data.label_noun == "class"
    assert ImageFolder(str(tmp_path), classes=10).tensors().classes == 10
    with pytest.raises(UserError, match=f"a label is {max(labels)}; labels must be from 0 to 1"):
        ImageFolder(str(tmp_path), classes=2).tensors()


def test_a_test_folder_may_lack_a_class(tmp_path: Path) -> None:
    write_parts(tmp_path, ("cat", "dog"))
    (tmp_path / "test" / "cat" / "a.png").unlink()
    (tmp_path / "test" / "cat").rmdir()
    data = ImageFolder(str(tmp_path)).tensors()
    assert data.test_labels.tolist() == [1] and data.classes == 2


@pytest.mark.parametrize(("share", "tested"), [(0.2, 2), (0.5, 5), (0.01, 1), (0.99, 9)])
def test_a_share_of_each_class_is_to_test_on(tmp_path: Path, share: float, tested: int) -> None:
    write_classes(tmp_path, ("cat", "dog"), number=10)
    data, again = (ImageFolder(str(tmp_path), test_share=share).tensors() for _ in range(2))
    assert data.test_labels.bincount().tolist() == [tested] * 2
    assert data.train_labels.bincount().tolist() == [10 - tested] * 2
    files = [*data.train_columns["file"], *data.test_columns["file"]]
    assert sorted(files) == sorted(f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10))
    assert again.test_columns == data.test_columns and again.sha256 == data.sha256


def test_two_images_of_a_class_suffice_and_one_does_not(tmp_path: Path) -> None:
    write_classes(tmp_path, number=2)
    data = ImageFolder(str(tmp_path)).tensors()
    assert data.train_labels.tolist() == data.test_labels.tolist() == [0, 1]
    (tmp_path / "dog" / "1.png").unlink()
    with pytest.raises(UserError, match=r"dog: has one image, but training and testing need one each; add one"):
        ImageFolder(str(tmp_path)).load()


def test_images_are_grey_unless_one_has_colours(tmp_path: Path) -> None:
    write_classes(tmp_path)
    assert ImageFolder(str(tmp_path)).tensors().shape == (8, 8)
    assert ImageFolder(str(tmp_path), colour=True).tensors().shape == (3, 8, 8)
    write_png(pictures(1, 3, 8, 8)[0], tmp_path / "dog" / "9.png")
    data = ImageFolder(str(tmp_path)).tensors()
    assert data.shape == (3, 8, 8)
    grey = data.train_images.view(-1, 3, 8, 8)[data.train_labels == 0]
    assert torch.equal(grey[:, 0], grey[:, 2])
    assert ImageFolder(str(tmp_path), colour=False).tensors().shape == (8, 8)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("colour", [None, True, False])
@pytest.mark.parametrize("resize", [None, [8, 8]])
def test_every_kind_of_png_and_jpeg_gives_its_pixels(
    tmp_path: Path, mode: str, colour: bool | None, resize: list[int] | None
) -> None:
    """Of an image with a white upper and a black lower half."""
    half = np.repeat(np.array([[255], [0]], dtype=np.uint8), 4, 0).repeat(8, 1)
    for name in ("cat/0", "cat/1", "dog/0", "dog/1"):
        path = tmp_path / f"{name}.{'jpg' if mode == 'CMYK' else 'png'}"
        path.parent.mkdir(exist_ok=True)
        whole = Image.fromarray(half.astype(np.uint16) * 257) if mode == "I;16" else Image.fromarray(half).convert(mode)
        whole.save(path)
    data = ImageFolder(str(tmp_path), resize=resize, colour=colour).tensors()
    own = mode in ("P", "RGB", "RGBA", "CMYK")
    assert data.shape == ((3, 8, 8) if (own if colour is None else colour) else (8, 8))
    rows = data.train_images.view(len(data.train_images), -1, 8, 8)
    torch.testing.assert_close(rows[:, :, :4], torch.ones_like(rows[:, :, :4]), atol=0.02, rtol=0)
    torch.testing.assert_close(rows[:, :, 4:], -torch.ones_like(rows[:, :, 4:]), atol=0.02, rtol=0)


def test_sixteen_bits_are_kept_beside_eight(tmp_path: Path) -> None:
    deep = np.arange(16).reshape(4, 4) * 4369
    for name in ("cat", "dog"):
        write_grey(deep, tmp_path / "train" / name / "0.png", np.uint16)
        write_grey(deep + 1 - (deep > 0), tmp_path / "train" / name / "1.png", np.uint16)
        write_grey(np.arange(16).reshape(4, 4) * 17, tmp_path / "test" / name / "0.png")
    data = ImageFolder(str(tmp_path)).tensors()
    expected = torch.from_numpy(deep.flatten() / 32767.5 - 1).float()
    torch.testing.assert_close(data.train_images[0], expected)
    torch.testing.assert_close(data.test_images[0], expected)  # the same, of 8 bits
    assert float((data.train_images[1] - data.train_images[0]).abs().max()) == pytest.approx(1 / 32767.5, rel=1e-2)
    coloured = ImageFolder(str(tmp_path), colour=True).tensors()
    torch.testing.assert_close(coloured.train_images[0], expected.repeat(3))


def test_png_and_jpeg_stand_side_by_side_and_other_files_are_left_alone(tmp_path: Path) -> None:
    write_classes(tmp_path, number=3)
    for name in ("a.jpg", "b.JPEG", "c.PNG"):
        pixels = np.full((8, 8), 100)
        path = tmp_path / "cat" / name
        write_grey(pixels, path, format="PNG" if name.endswith("PNG") else "JPEG")
    for hidden in (".DS_Store", ".hidden.png", "notes.txt", "._0.png"):
        (tmp_path / "cat" / hidden).write_bytes(b"no image")
    write_classes(tmp_path / ".cache", number=1)
    (tmp_path / "README.md").write_text("of the folder")
    data = ImageFolder(str(tmp_path)).tensors()
    files = sorted([*data.train_columns["file"], *data.test_columns["file"]])
    assert files == sorted([f"cat/{n}" for n in ("0.png", "1.png", "2.png", "a.jpg", "b.JPEG", "c.PNG")] + [
        f"dog/{n}.png" for n in range(3)])  # fmt: skip
    assert data.classes == 2


def test_images_of_several_sizes_are_refused_or_scaled(tmp_path: Path) -> None:
    write_classes(tmp_path, size=8)
    write_grey(np.full((6, 10), 51), tmp_path / "dog" / "wide.png")
    with pytest.raises(UserError) as error:
        ImageFolder(str(tmp_path)).load()
    named = "wide.png: the image is 10 x 6, others are 8 x 8; give dataset.resize=[height,width]"
    assert named in str(error.value) or "the image is 8 x 8, others are 10 x 6" in str(error.value)
    data = ImageFolder(str(tmp_path), resize=[4, 12]).tensors()
    assert data.shape == (4, 12)
    images = torch.cat([data.train_images, data.test_images])
    files = [*data.train_columns["file"], *data.test_columns["file"]]
    wide = images[files.index("dog/wide.png")]
    torch.testing.assert_close(wide, torch.full_like(wide, 51 / 127.5 - 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_jpeg_is_read_as_its_camera_was_held(tmp_path: Path, orientation: int) -> None:
    upright = np.zeros((16, 8), dtype=np.uint8)
    upright[:8, :8] = 255  # bright above
    upright[8:, 4:] = 128  # and grey at the lower right
    stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T,
        6: np.rot90(upright), 7: np.rot90(upright, 2).T, 8: np.rot90(upright, 3),
    }[orientation]  # fmt: skip
    exif = Image.Exif()
    exif[0x0112] = orientation
    for name in ("cat", "dog"):
        write_grey(stored.copy(), tmp_path / name / "0.jpg", exif=exif, quality=100)
        write_grey(upright, tmp_path / name / "1.png")
    data = ImageFolder(str(tmp_path)).tensors()
    assert data.shape == (16, 8)
    for images in (data.train_images, data.test_images):
        torch.testing.assert_close(images[0], scaled(torch.from_numpy(upright)[None])[0], atol=0.05, rtol=0)


def test_a_table_gives_columns_by_file(tmp_path: Path) -> None:
    write_classes(tmp_path / "images", number=2)
    table = tmp_path / "cameras.csv"
    table.write_text('file,camera,note\ncat/0.png,left,"a, b"\ndog/1.png,right,\nnowhere.png,left,x\ncat/1.png,left,\n')
    data = ImageFolder(str(tmp_path / "images"), table=str(table)).tensors()
    columns = [data.train_columns, data.test_columns]
    found = {file: camera for part in columns for file, camera in zip(part["file"], part["camera"], strict=True)}
    assert found == {"cat/0.png": "left", "cat/1.png": "left", "dog/0.png": "", "dog/1.png": "right"}
    notes = {file: note for part in columns for file, note in zip(part["file"], part["note"], strict=True)}
    assert notes["cat/0.png"] == "a, b"
    for content, message in (
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("path,camera\na,b\n", "has no column 'file'; its columns are path, camera"),
        ("file,camera\na\n", "cannot be read"),
        ("file,camera\n\xff", "cannot be read"),
    ):
        if content is None:
            table.unlink()
        else:
            table.write_bytes(content.encode("latin-1"))
        with pytest.raises(UserError) as error:
            ImageFolder(str(tmp_path / "images"), table=str(table)).load()
        text = str(error.value)
        assert text.startswith(f"dataset.table={table}: {message}") and "\n" not in text


def test_metadata_is_by_the_order_of_the_data(tmp_path: Path) -> None:
    write_parts(tmp_path / "images", ("cat", "dog"))
    for part in ("train", "test"):
        (tmp_path / f"{part}.csv").write_text(f"writer\n{part} a\n{part} b\n")
    data = ImageFolder(str(tmp_path / "images"), metadata=str(tmp_path)).tensors(test_limit=1)
    assert data.train_columns["writer"] == ["train a", "train b"] and data.test_columns["writer"] == ["test a"]


def test_what_is_wrong_with_folders_is_said(tmp_path: Path) -> None:
    images = tmp_path / "images"
    steps: list[tuple[Callable[[], Any], str]] = [
        (lambda: None, f"{images}: cannot be read (No such file or directory); give train/<class>/*.png and"),
        (lambda: images.mkdir(), f"{images}: has no folder of images; give train"),
        (lambda: (images / "train").mkdir(), f"{images}: no .png or .jpg in {images / 'train'}; give train"),
        (lambda: (images / "test" / "ship").mkdir(parents=True), f"{images}: no folder in train; give train"),
        (lambda: (images / "train" / "cat").mkdir(), f"{images}: test/ship is not in train; give train"),
        (lambda: (images / "train" / "ship").mkdir(), f"{images}: no .png or .jpg in"),
        (lambda: write_png(pictures(1, 3, 28, 32)[0], images / "train" / "cat" / "1.png"),
         f"{images}: no .png or .jpg in {images / 'test' / 'ship'}"),
        (lambda: write_png(pictures(1, 3, 32, 32)[0], images / "test" / "ship" / "2.png"),
         "2.png: the image is 32 x 32, others are 32 x 28; give dataset.resize=[height,width]"),
        (lambda: (images / "test" / "ship" / "2.png").write_bytes(b"GIF89a" + b"x" * 60),
         f"{images}/test/ship/2.png: is not a PNG or JPEG"),
        (lambda: (images / "test" / "ship" / "2.png").write_bytes(
            (images / "train" / "cat" / "1.png").read_bytes()[:-400]), f"{images}/test/ship/2.png: damaged ("),
        (lambda: (images / "test" / "ship" / "2.png").write_bytes(b""), f"{images}/test/ship/2.png: is not a PNG"),
        (lambda: pipe(images / "test" / "ship" / "2.png"),
         f"{images}/test/ship/2.png: cannot be read (it is not a regular file)"),
    ]  # fmt: skip
    for make, message in steps:
        make()
        with pytest.raises(UserError) as error:
            ImageFolder(str(images)).tensors()
        assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_on_ones_own_images_with_groups_by_a_column(tmp_path: Path) -> None:
    """The run, report and all, its claims, and its model read back."""
    write_classes(tmp_path / "images", ("ash", "birch", "oak"), number=20, size=12)
    files = [f"{name}/{number}.png" for name in ("ash", "birch", "oak") for number in range(20)]
    rows = [f"{file},{'left' if place % 2 else 'right'}" for place, file in enumerate(files)]
    (tmp_path / "cameras.csv").write_text("\n".join(["file,camera", *rows]) + "\n")
    changes = [
        "dataset=images", f"dataset.root={tmp_path / 'images'}", f"dataset.table={tmp_path / 'cameras.csv'}",
        "dataset.resize=[10,14]", "routing.groups={digits_0_4: null, digits_5_9: null}",
        "routing.groups.left={column: camera, values: [left]}", "routing.groups.right.rest=true",
        "routing.routes={digits_0_4: null, digits_5_9: null, left: {bottom: 0}, right: {top: 0}}",
        "trainer=smoke", "model.hidden=[8]", "trainer.batch_size=16", f"output_dir={tmp_path}",
    ]  # fmt: skip
    (run,) = execute([configuration(changes)])
    assert isinstance(run, Path), run
    assert load(run).model(torch.zeros(1, 140)).shape == (1, 140)
    assert all(claim.holds for claim in claims_of(run))
    assert "class_2" in (run / "metrics.csv").read_text() and ",left,decoder," in (run / "metrics.csv").read_text()
