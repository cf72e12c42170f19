"""Configurations composed from Hydra's groups and overrides, without running anything."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from gradroute.commands.run import conf_dir
from gradroute.config.schema import Config
from gradroute.config.typed import from_mapping


def composed(overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """The configuration with overrides; `folder` is one more to look for groups in, as `--config-dir` names it."""
    searched = [f"hydra.searchpath=[file://{folder.resolve()}]"] if folder else []
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return compose("config", [*searched, *overrides])


def configuration(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """What `gradroute-run` would run with these overrides. Raises: UserError, or what Hydra raises."""
    return from_mapping(composed(overrides, folder))
