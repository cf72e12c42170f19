"""Configurations between Hydra, run folders and the typed schema.

A configuration comes from Hydra or from a run folder; either way it passes through `from_mapping`, so a mistake is
refused wherever it came from.
"""

import hashlib
import json
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import asdict, fields, is_dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gradroute.config.image_checks import check_images
from gradroute.config.language_checks import check_language
from gradroute.config.schema import Config
from gradroute.config.split import expand_split
from gradroute.config.validation import check
from gradroute.errors import UserError, unknown


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
    _require_type("", config, Config)
    config.presets = {}  # resolved into `trainer`; keeping both would let them disagree
    expand_split(config)
    check(config)
    check_images(config)
    check_language(config)
    return config


def _require_type(key: str, value: Any, kind: Any) -> None:
    """Raise UserError for a value that is not of its field's type: an interpolation passes OmegaConf's own check."""
    if kind is Any or (value is None and type(None) in get_args(kind)):
        return
    if get_origin(kind) in (Union, UnionType):
        kind = get_args(kind)[0]
    base: Any = get_origin(kind) or kind
    name = "mapping" if base is dict or is_dataclass(base) else base.__name__
    holds = isinstance(value, (int, float) if base is float else base)
    if not holds or (isinstance(value, bool) and base is not bool):
        raise UserError(f"{key}={value}: must be a {name}")
    for child, inner, child_kind in _children(value, kind):
        _require_type(f"{key}.{child}" if key else str(child), inner, child_kind)


def _children(value: Any, kind: Any) -> list[tuple[object, Any, Any]]:
    """Name or place, value and type of what is inside a value."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return [(entry.name, getattr(value, entry.name), hints[entry.name]) for entry in fields(kind)]
    if get_origin(kind) is dict:
        return [(name, inner, get_args(kind)[1]) for name, inner in value.items()]
    return [(place, inner, get_args(kind)[0]) for place, inner in enumerate(value)] if get_origin(kind) is list else []


def to_mapping(config: Config) -> dict[str, Any]:
    """Plain nested dictionary of a configuration, as saved in a run folder."""
    mapping = asdict(config)
    for key in ("presets", "seeds", "stack", "trained"):  # how it was asked for, not what it is
        del mapping[key]
    return mapping


def one_by_seed(config: Config) -> list[Config]:
    """The runs that a configuration asks for with `seeds`: itself, if it does not."""
    runs = [deepcopy(config) for _ in range(config.seeds or 1)]
    for number, run in enumerate(runs):
        run.seed, run.seeds = config.seed + number, None
    return runs


def flat(mapping: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return items


def differences(one: Config, other: Config) -> list[str]:
    """The keys in which two configurations ask for different runs; devices, folders and checkpoints may differ."""
    elsewhere = ("output_dir", "dataset.root", "trainer.device")
    a, b = flat(to_mapping(one)), flat(to_mapping(other))
    keys = [key for key in {**a, **b} if a.get(key) != b.get(key) or (key in a) != (key in b)]
    return [key for key in keys if key not in elsewhere and not key.startswith("checkpoint.")]


def config_hash(config: Config) -> str:
    """Eight hex digits that two runs share when they differ at most in seed, device, paths and checkpoints."""
    mapping = to_mapping(config)
    del mapping["seed"], mapping["output_dir"], mapping["dataset"]["root"], mapping["trainer"]["device"]
    del mapping["checkpoint"]
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
