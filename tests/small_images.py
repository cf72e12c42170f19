"""A run on images with tiny sizes, for tests that repeat it; and the files that must not differ."""

from pathlib import Path

import torch
from PIL import Image

from gradroute.config.compose import configuration
from gradroute.config.schema import Config

SMALL = [
    "trainer=smoke", "trainer.train_limit=512", "trainer.test_limit=64", "trainer.batch_size=32", "trainer.epochs=3",
    "trainer.device=cpu", "model.hidden=[64,32]", "steps=[train,certify,ablate,evaluate]", "ledger.window=7",
    "ledger.every=3",
]  # fmt: skip
FILES = ("metrics.csv", "ledger.csv", "model.safetensors", "samples.npz", "summary.json", "figures.json")


def small(*overrides: str) -> Config:
    return configuration([*SMALL, *overrides])


def hundred_classes(folder: Path) -> list[str]:
    """Write coloured images of a hundred classes, as CIFAR-100 has, which is downloaded and so not for tests.

    One random image of each class, to train and to test on; returns overrides of `cifar100_split` for them.
    The model is small: four stages of one block each.
    """
    folder.mkdir(exist_ok=True)
    pixels = torch.randint(0, 256, (100, 1024, 3), dtype=torch.uint8).numpy()
    for part in ("train", "test"):
        Image.fromarray(pixels).save(folder / f"{part}.png")
        (folder / f"{part}_labels.json").write_text(str(list(range(100))))
    model = ["model.blocks=[1,1,1,1]", "model.width=16"]
    regions = ["routing.regions.top.units=0:64", "routing.regions.bottom.units=64:128"]
    return [f"dataset.root={folder}", "dataset.format=strips", *model, *regions]
