"""Checks of a configuration about images that need neither images nor a built model."""

from typing import Any

from gradroute.config.components import step_names
from gradroute.config.doors import TARGET
from gradroute.config.limits import require
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.data.images.dataset import ImageDataset
from gradroute.errors import UserError
from gradroute.training.penalties import penalties_of

LATER = ("unlearn", "finetune", "relearn", "steer")  # steps of language models


def indivisible(config: Config) -> str | None:
    """What takes a batch as a whole, so that it cannot be split into parts that add up; None if nothing does."""
    if any(penalty.whole_batch for penalty in penalties_of(config.losses)):
        return "losses.correlation" if config.losses.correlation else "losses.penalties"
    return "batch norm (model.norm)" if config.model.get("norm") == "batch" else None


def require_divisible(config: Config) -> None:
    """Raise UserError if batches are to be taken in parts and something takes a batch as a whole."""
    if reason := indivisible(config):
        right = f"1: {reason} takes a batch as a whole"
        require(config.trainer.accumulate == 1, "trainer.accumulate", config.trainer.accumulate, right)


def check_images(config: Config) -> None:
    """Raise UserError for settings that do not fit images."""
    require_dataset(config, ImageDataset, "images", "dataset=mnist, dataset=images")
    require_divisible(config)
    rules = [name for name, rule in config.routing.groups.items() if rule.tokens != "all"]
    require(not rules, "routing.groups", rules, "without tokens=: images have none")
    for key in ("tune_steps", "unlearn_steps"):
        value = getattr(config.trainer, key)
        require(value is None, f"trainer.{key}", value, "null for images")
    names = step_names(config)
    for step in LATER:
        require(step not in names, "steps", names, f"without {step}, which is for language models")
    require(config.completions is None, "completions", "{…}", "null for images")


def require_dataset(config: Config, kind: type[Any], noun: str, examples: str) -> None:
    """Raise UserError unless the configuration's data set is of the kind that a task takes."""
    found = locate(config.dataset[TARGET], "dataset")
    if not issubclass(found, kind):
        task = config.task[TARGET].rpartition(".")[2]
        raise UserError(f"dataset: {found.__name__} has no {noun}, which task={task} is about; give {examples}, or "
                        "another task=")  # fmt: skip
