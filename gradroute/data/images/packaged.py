"""MNIST from the package, unpacked once into a cache folder and verified."""

import hashlib
import lzma
import os
import tempfile
from pathlib import Path

import platformdirs
from filelock import FileLock

from gradroute.errors import UserError
from gradroute.records.atomic import sha256_of

PACKAGED = Path(__file__).parent / "mnist"
MNIST_SHA256 = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


def cache_dir() -> Path:
    """Return the folder where data sets are unpacked: `GRADROUTE_DATA`, else the platform's cache folder."""
    return Path(os.environ.get("GRADROUTE_DATA") or platformdirs.user_cache_dir("gradroute"))


def content(name: str) -> bytes:
    """Unpack and verify one packaged file, and return its content. Raises: UserError if it is missing or damaged."""
    packed = PACKAGED / f"{name}.xz"
    try:
        found = lzma.decompress(packed.read_bytes())
    except (OSError, lzma.LZMAError) as error:
        raise UserError(
            f"{packed}: the packaged data file is missing or damaged ({error}); reinstall gradroute"
        ) from None
    if hashlib.sha256(found).hexdigest() != MNIST_SHA256[name]:
        raise UserError(f"{packed}: the packaged data file has the wrong SHA-256; reinstall gradroute")
    return found


def _write(name: str, folder: Path) -> None:
    """Write one packaged file into `folder`: to a temporary file first, then renamed over the target."""
    found = content(name)
    with tempfile.NamedTemporaryFile(dir=folder, prefix=f".{name}.", delete=False) as file:
        file.write(found)
    os.chmod(file.name, 0o644)
    os.replace(file.name, folder / name)


def unpack_mnist(root: Path) -> bool:
    """Unpack the four canonical files into `root/MNIST/raw`, unless they are there and intact.

    Returns: False if the folder cannot be written, else True.
    """
    folder = root / "MNIST" / "raw"
    try:
        if all((folder / name).is_file() and sha256_of(folder / name) == sum_ for name, sum_ in MNIST_SHA256.items()):
            return True
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(root / "MNIST" / ".lock"):  # several processes with an empty cache unpack once
            for name, sha256 in MNIST_SHA256.items():
                if not (folder / name).is_file() or sha256_of(folder / name) != sha256:
                    _write(name, folder)
    except OSError:
        return False
    return True


def unpack_somewhere(root: Path) -> tuple[Path, tempfile.TemporaryDirectory[str] | None]:
    """Return the folder with MNIST's files: `root`, or a temporary one (keep a reference) if `root` is not writable."""
    if unpack_mnist(root):
        return root, None
    place = tempfile.TemporaryDirectory(prefix="gradroute-")
    if not unpack_mnist(Path(place.name)):
        raise UserError(f"{place.name}: cannot be written; set GRADROUTE_DATA to a writable folder")
    return Path(place.name), place


def check_given(root: Path) -> None:
    """Raise UserError unless the folder that the user names has the canonical files."""
    for name, sha256 in MNIST_SHA256.items():
        path = root / "MNIST" / "raw" / name
        if not path.is_file():
            raise UserError(f"dataset.root={root}: {path} is missing; leave dataset.root out to use the packaged files")
        if sha256_of(path) != sha256:
            raise UserError(f"dataset.root={root}: {path} is damaged (SHA-256 differs from the canonical file)")
