"""Configurations composed from Hydra's groups and overrides, without running anything."""

from collections.abc import Sequence
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from gradroute.config.build import from_mapping
from gradroute.config.doors import TARGET, foreign
from gradroute.config.overrides import prepared
from gradroute.config.schema import Config
from gradroute.config.targets import add_code_folder
from gradroute.errors import UserError

REPLACEABLE = ("dataset", "model", "task", "ablation", "tracker")  # groups whose options are one component each
CONFIG_DIR = ("--config-dir", "-cd")


def conf_dir() -> Path:
    """The folder of configurations: inside an installed package, else the checkout's."""
    packaged = Path(__file__).parent.parent / "conf"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "conf"


def use_code_of(config_dir: Path) -> None:
    """Make the Python files beside and inside a `--config-dir` importable."""
    for folder in (config_dir.resolve().parent, config_dir.resolve()):
        add_code_folder(folder)


def without_config_dirs(arguments: Sequence[str], names: Sequence[str] = CONFIG_DIR) -> tuple[list[str], list[Path]]:
    """The arguments but for `--config-dir DIR`, and the folders; `names` of it. Raises: UserError for no folder."""
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
    replaced = []
    for group in REPLACEABLE:
        if isinstance(config.get(group), DictConfig) and foreign(OmegaConf.to_container(config[group])):
            try:
                rest = compose("config", [*overrides, f"~{group}"]).get(group)
            except HydraException:  # no option is selected
                continue
            replaced += [f"~{group}"] if isinstance(rest, DictConfig) and TARGET in rest else []
    return compose("config", [*overrides, *replaced]) if replaced else config


def composed(overrides: Sequence[str], folder: Path | None = None) -> DictConfig:
    """The configuration with overrides; `folder` is one more to look for groups in, as `--config-dir` names it."""
    searched = []
    if folder:
        use_code_of(folder)
        searched = [f"hydra.searchpath=[file://{folder.resolve()}]"]
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        given = [*searched, *prepared(overrides)]
        return without_replaced(compose("config", given), given)


def configuration(overrides: Sequence[str], folder: Path | None = None) -> Config:
    """What `gradroute-run` would run with these overrides. Raises: UserError, or what Hydra raises."""
    return from_mapping(composed(overrides, folder))
