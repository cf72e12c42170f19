"""A run on images with tiny sizes, for tests that repeat it; and the files that must not differ."""

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
