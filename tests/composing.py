"""Compose configurations in less time: Hydra reads and parses some thirty files for each, twice in a command."""

import copy
from typing import Any

from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra

OURS = {"hydra", "main", "schema"}  # providers of folders that no test changes; a user's own come from others
_read = ConfigRepository.load_config
_parsed: dict[str, Any] = {}


def load_config(repository: ConfigRepository, config_path: str) -> Any:
    """Take the place of `ConfigRepository.load_config`, and parse a file of the package once in a process."""
    if any(source.provider not in OURS for source in repository.get_sources()):
        return _read(repository, config_path)
    if config_path not in _parsed:
        _parsed[config_path] = _read(repository, config_path)
    return copy.deepcopy(_parsed[config_path])


def no_mode(hydra: object, config_name: str | None, overrides: list[str]) -> None:
    """Take the place of `Hydra.get_mode`, which composes all over to see whether `hydra.mode` is set; it never is."""


def quick() -> None:
    """Use both from now on."""
    repository: Any = ConfigRepository
    repository.load_config = load_config
    command: Any = Hydra
    command.get_mode = no_mode
