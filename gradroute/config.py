"""Configurations between Hydra, run folders and the typed schema.

A configuration comes from Hydra or from a run folder; either way it passes through `from_mapping`, so a mistake is
refused wherever it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradroute.checks import check
from gradroute.errors import UserError, unknown
from gradroute.schema import Config
from gradroute.split import expand_split


def from_mapping(mapping: DictConfig | Mapping[str, Any]) -> Config:
    """Type-check a composed configuration and run the cross-field checks.

    Raises: UserError for an unknown key, a wrong type, or a value outside its range.
    """
    schema = OmegaConf.structured(Config)
    source = mapping if isinstance(mapping, DictConfig) else OmegaConf.create(dict(mapping))
    try:
        preset = OmegaConf.select(source, "trainer.preset", default=None)
        blocks = OmegaConf.select(source, "presets", default=None)
        if blocks and preset not in blocks:
            raise unknown("trainer preset", preset, blocks)
        config = OmegaConf.to_object(OmegaConf.merge(schema, source))
    except OmegaConfBaseException as error:
        raise _readable(error) from None
    if not isinstance(config, Config):
        raise UserError("the configuration is not a mapping of keys to values")
    config.presets = {}  # resolved into `trainer`; keeping both would let them disagree
    expand_split(config)
    check(config)
    return config


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, as saved in a run folder."""
    mapping = asdict(config)
    for key in ("presets", "seeds", "stack"):  # how it was asked for, not what it is
        del mapping[key]
    return mapping


def one_by_seed(config: Config) -> list[Config]:
    """The runs that a configuration asks for with `seeds`: itself, if it does not."""
    runs = [deepcopy(config) for _ in range(config.seeds or 1)]
    for number, run in enumerate(runs):
        run.seed, run.seeds = config.seed + number, None
    return runs


def config_hash(config: Config) -> str:
    """Eight hex digits that two runs share when they differ at most in seed, device and paths."""
    mapping = to_mapping(config)
    del mapping["seed"], mapping["output_dir"], mapping["dataset"]["root"], mapping["trainer"]["device"]
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:8]


def _readable(error: OmegaConfBaseException) -> UserError:
    """One line for OmegaConf's report, with the nearest valid key where the key is unknown."""
    key = str(error.full_key or "?")
    parent, _, last = key.rpartition(".")
    kind: Any = error.object_type
    if is_dataclass(kind):
        names = [entry.name for entry in fields(kind)]
        if last not in names:
            return unknown("key", key, [f"{parent}.{name}" if parent else name for name in names])
    return UserError(f"{key}: " + str(error).splitlines()[0])
