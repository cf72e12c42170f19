"""Compose configurations in less time: Hydra reads, parses and merges some thirty files for each, twice in a command.

What is kept within a process is what the chosen options give, before any value is set: the same for every test that
chooses them. `tests/config/test_composing.py` compares with Hydra as it is.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra._internal import config_loader_impl, defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import ConfigRepository
from hydra._internal.hydra import Hydra

OURS = {"hydra", "main", "schema"}  # providers of folders that no test changes; a user's own come from others
_read = ConfigRepository.load_config
_chosen = defaults_list.create_defaults_list
_merged = ConfigLoaderImpl._compose_config_from_defaults_list
_mode = Hydra.get_mode
_parsed: dict[str, Any] = {}
_lists: dict[tuple[Any, ...], Any] = {}
_configs: dict[str, Any] = {}


def sources(repository: Any) -> str:
    """Return what tells the folders that are searched from others: their paths, and the state of a user's own files."""
    found = repository.get_sources()
    own = [Path(source.path) for source in found if source.provider not in OURS]
    files = sorted(path for folder in own for path in folder.rglob("*.yaml"))
    return repr((found, [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in files]))


def load_config(repository: ConfigRepository, config_path: str) -> Any:
    """Take the place of `ConfigRepository.load_config`, and parse a file once in a process."""
    key = sources(repository) + config_path
    if key not in _parsed:
        _parsed[key] = _read(repository, config_path)
    return copy.deepcopy(_parsed[key])


def create_defaults_list(
    repo: Any, config_name: str | None, overrides_list: Sequence[Any], prepend_hydra: bool, skip_missing: bool
) -> Any:
    """Take the place of Hydra's, and resolve the same choice of options once in a process."""
    values = [one for one in overrides_list if isinstance(one.value(), dict) or not repo.group_exists(one.key_or_group)]
    options = [one for one in overrides_list if one not in values]
    key = (sources(repo), config_name, tuple(one.input_line for one in options), prepend_hydra, skip_missing)
    if key not in _lists:
        _lists[key] = _chosen(repo, config_name, options, prepend_hydra, skip_missing)
    return replace(_lists[key], config_overrides=[one for one in values if not one.is_sweep_override()])


def merged(loader: ConfigLoaderImpl, defaults: list[Any], repo: Any) -> Any:
    """Take the place of `ConfigLoaderImpl._compose_config_from_defaults_list`; merge the same files once."""
    key = sources(repo) + repr(defaults)
    if key not in _configs:
        _configs[key] = _merged(loader, defaults, repo)
    return copy.deepcopy(_configs[key])


def no_mode(*given: object, **named: object) -> None:
    """Take the place of `Hydra.get_mode`, which composes all over to see whether `hydra.mode` is set; it never is."""


REPLACED: list[tuple[Any, str, Callable[..., Any], Callable[..., Any]]] = [
    (ConfigRepository, "load_config", load_config, _read),
    (config_loader_impl, "create_defaults_list", create_defaults_list, _chosen),
    (ConfigLoaderImpl, "_compose_config_from_defaults_list", merged, _merged),
    (Hydra, "get_mode", no_mode, _mode),
]


def quick() -> None:
    """Use them from now on."""
    for owner, name, function, _ in REPLACED:
        setattr(owner, name, function)
