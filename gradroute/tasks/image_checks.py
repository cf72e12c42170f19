"""Checks of a configuration about images that need neither images nor a built model."""

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from gradroute.config.components import step_names
from gradroute.config.doors import TARGET
from gradroute.config.limits import require
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.data.images.dataset import ImageDataset
from gradroute.errors import UserError
from gradroute.training import distributed
from gradroute.training.penalties import penalties_of

LATER = ("unlearn", "finetune", "relearn", "steer")  # steps of language models


def norm_of(model: nn.Module) -> str:
    """Return the kind of norm in a model: `batch`, whose statistics need one pass for each group, `group` or `none`."""
    modules = list(model.modules())
    kinds = {"batch": _BatchNorm, "group": nn.GroupNorm}
    return next((name for name, kind in kinds.items() if any(isinstance(m, kind) for m in modules)), "none")


def require_whole_batches(config: Config, norm: str) -> None:
    """Raise UserError if the model has batch norm, and its batches would be taken in parts or its pass compiled."""
    if norm != "batch":
        return
    right = "false: batch norm needs one pass for each group"
    require(not config.trainer.compile, "trainer.compile", config.trainer.compile, right)
    right = "1: batch norm takes a batch as a whole"
    require(config.trainer.accumulate == 1, "trainer.accumulate", config.trainer.accumulate, right)
    if distributed.size() > 1:
        raise UserError("torchrun: batch norm takes a batch as a whole, and processes parts of it; leave torchrun out")


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
    require_whole_batches(config, str(config.model.get("norm")))
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
