"""Compose a configuration from Hydra's groups and overrides, without running anything."""

from collections.abc import Sequence
from inspect import signature
from pathlib import Path
from typing import Any

import hydra
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gradroute.config.build import from_mapping
from gradroute.config.doors import TARGET, foreign
from gradroute.config.overrides import prepared
from gradroute.config.schema import Config
from gradroute.config.targets import add_code_folder
from gradroute.errors import UserError

# Hydra 1.4 warns of the argument, which before says whose defaults to use
BASE: dict[str, Any] = {"version_base": "1.3"} if hydra.__version__.startswith("1.3.") else {}
# OmegaConf 2.4 warns of the name that 2.3 has; 2.3 means something else by the name that 2.4 has
NEWER = "replace" in signature(OmegaConf.register_resolver).parameters
register: Any = OmegaConf.register_resolver if NEWER else OmegaConf.register_new_resolver
register("preset", lambda key, *, _root_: _root_.presets[_root_.trainer.preset][key], replace=True)
# groups whose options are one component each
REPLACEABLE = ("dataset", "environment", "model", "task", "ablation", "tracker")
CONFIG_DIR = ("--config-dir", "-cd")


def conf_dir() -> Path:
    """Return the folder of configurations: that of the installed package, else that of the checkout."""
    packaged = Path(__file__).parent.parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def use_code_of(config_dir: Path) -> None:
    """Make the Python files beside and inside a `--config-dir` importable. Raises: UserError if it is no folder."""
    if not config_dir.is_dir():
        raise UserError(f"{CONFIG_DIR[0]} {config_dir}: must be a folder")
    for folder in (config_dir.resolve().parent, config_dir.resolve()):
        add_code_folder(folder)


def without_config_dirs(arguments: Sequence[str], names: Sequence[str] = CONFIG_DIR) -> tuple[list[str], list[Path]]:
    """Return the arguments without `--config-dir DIR`, and the folders; `names` are the spellings of the option.

    Raises: UserError if a DIR is not a folder.
    """
    rest, folders = list(arguments), list[Path]()
    for name in names:
        while name in rest:
            place = rest.index(name)
            if place + 1 == len(rest) or not Path(rest[place + 1]).is_dir():
                raise UserError(f"{name} {''.join(rest[place + 1 : place + 2])}: must be a folder")
            folders.append(Path(rest[place + 1]))
            del rest[place : place + 2]
    return rest, folders


def without_replaced(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Compose again without the options whose component is replaced by one of the user's own.

    Hydra merges `model: {_target_: mine.Net, width: 8}` with the keys of the option selected for `model`, which are
    arguments of another model. `overrides` are those that `config` was composed of.
    """
    own = [
        group
        for group in REPLACEABLE
        if isinstance(config.get(group), DictConfig) and foreign(OmegaConf.to_container(config[group]))
    ]
    rest = _without(overrides, own) if own else None
    if own and not all(_names_one(rest, group) for group in own):  # for some of them no option is selected
        own = [group for group in own if _names_one(_without(overrides, [group]), group)]
        rest = _without(overrides, own) if own else None
    return config if rest is None else rest


def _without(overrides: Sequence[str], groups: Sequence[str]) -> DictConfig | None:
    """Compose without the options of some groups; return None if Hydra finds none to leave out."""
    try:
        return compose("config", [*overrides, *(f"~{group}" for group in groups)])
    except HydraException:
        return None


def _names_one(config: DictConfig | None, group: str) -> bool:
    component = None if config is None else config.get(group)
    return isinstance(component, DictConfig) and TARGET in component


def composed(overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """Compose the configuration with overrides; `folder` is searched for groups as well, like a `--config-dir`."""
    searched = []
    if folder:
        use_code_of(folder)
        searched = [f"hydra.searchpath=[file://{folder.resolve()}]"]
    with initialize_config_dir(str(conf_dir().resolve()), **BASE):
        given = [*searched, *prepared(overrides)]
        return without_replaced(compose("config", given), given)


def configuration(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """Return the configuration that `gradroute-run` would run. Raises: UserError, or an error of Hydra."""
    return from_mapping(composed(overrides, folder))
