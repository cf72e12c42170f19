"""Check a configuration for images, before images are read or a model is built."""

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

LATER = ("unlearn", "finetune", "relearn", "steer")  # steps for language models only


def norm_of(model: nn.Module) -> str:
    """Return a model's kind of normalisation: `batch`, which needs one pass for each group, `group` or `none`."""
    modules = list(model.modules())
    kinds = {"batch": _BatchNorm, "group": nn.GroupNorm}
    return next((name for name, kind in kinds.items() if any(isinstance(m, kind) for m in modules)), "none")


def require_whole_batches(config: Config, norm: str) -> None:
    """Raise UserError if a model with batch norm would be compiled or would get its batches in parts."""
    if norm != "batch":
        return
    right = "false: batch norm needs one pass for each group"
    require(not config.trainer.compile, "trainer.compile", config.trainer.compile, right)
    right = "1: batch norm needs the whole batch at once"
    require(config.trainer.accumulate == 1, "trainer.accumulate", config.trainer.accumulate, right)
    if distributed.size() > 1:
        raise UserError("torchrun: batch norm needs the whole batch in one process; run without torchrun")


def indivisible(config: Config) -> str | None:
    """Return what needs the whole batch at once, so that parts of it do not add up; None if nothing does."""
    if any(penalty.whole_batch for penalty in penalties_of(config.losses)):
        return "losses.correlation" if config.losses.correlation else "losses.penalties"
    return "batch norm (model.norm)" if config.model.get("norm") == "batch" else None


def require_divisible(config: Config) -> None:
    """Raise UserError if batches would be split although something needs the whole batch at once."""
    if reason := indivisible(config):
        right = f"1: {reason} needs the whole batch at once"
        require(config.trainer.accumulate == 1, "trainer.accumulate", config.trainer.accumulate, right)


def check_images(config: Config) -> None:
    """Raise UserError for settings that do not fit images."""
    require_dataset(config, ImageDataset, "images", "dataset=mnist, dataset=images")
    require_divisible(config)
    require_whole_batches(config, str(config.model.get("norm")))
    rules = [name for name, rule in config.routing.groups.items() if rule.tokens != "all"]
    require(not rules, "routing.groups", rules, "groups without tokens=: images have no tokens")
    for key in ("tune_steps", "unlearn_steps"):
        value = getattr(config.trainer, key)
        require(value is None, f"trainer.{key}", value, "null for images")
    names = step_names(config)
    for step in LATER:
        require(step not in names, "steps", names, f"without {step}, which is for language models")
    require(config.completions is None, "completions", "{…}", "null for images")


def require_dataset(config: Config, kind: type[Any], noun: str, examples: str) -> None:
    """Raise UserError unless the configuration's data set is of the kind that the task needs."""
    found = locate(config.dataset[TARGET], "dataset")
    if not issubclass(found, kind):
        task = config.task[TARGET].rpartition(".")[2]
        raise UserError(f"dataset: {found.__name__} has no {noun}, which task={task} needs; give {examples}, or "
                        "another task=")  # fmt: skip
