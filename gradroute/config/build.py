"""Build the typed configuration from Hydra, a run folder or Python.

Every configuration passes through `from_mapping`, so that mistakes are found before anything is trained.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from gradroute.config.auto import expand_auto
from gradroute.config.components import complete, steps_of
from gradroute.config.doors import TARGET
from gradroute.config.legacy import migrated
from gradroute.config.overrides import NAMED
from gradroute.config.schema import Config
from gradroute.config.split import expand_split
from gradroute.config.targets import locate
from gradroute.config.validation import check, check_values
from gradroute.errors import UserError, unknown


def from_mapping(mapping: DictConfig | Mapping[str, Any]) -> Config:
    """Return a checked configuration: types, ranges, components, and all else that needs neither data nor a model.

    This imports the components that the configuration names. Read a run folder through `gradroute.records.run_reader`,
    which refuses foreign code.

    Raises: UserError for an unknown key, a wrong type, a value outside its range, or values that do not fit together.
    """
    config = _typed(mapping)
    check_values(config)
    complete(config)
    expand_split(config)
    if config.routing.auto is not None:
        expand_auto(config)
    check(config)
    locate(config.task[TARGET], "task").check(config)
    for step in steps_of(config):
        step.check(config)
    return config


def _typed(mapping: DictConfig | Mapping[str, Any]) -> Config:
    """Fill in the schema from a mapping and resolve its interpolations. Raises: UserError."""
    source = copy.deepcopy(mapping) if isinstance(mapping, DictConfig) else OmegaConf.create(migrated(mapping))
    try:
        source = _without_nulls(_with_one_preset(source))
        OmegaConf.resolve(source)  # merged unresolved, OmegaConf 2.4 refuses a mapping or a list
        _require_containers("", OmegaConf.to_container(source), Config)
        config = OmegaConf.to_object(OmegaConf.merge(_schema(), source))
    except OmegaConfBaseException as error:
        raise _readable(error) from None
    if not isinstance(config, Config):
        raise UserError("the configuration is not a mapping of keys to values")
    _require_type("", config, Config)
    config.presets, config.audits = {}, {}  # resolved into `trainer` and `audit`; keeping both would let them disagree
    return config


@cache  # making it takes longer than the copy of it that every merge makes
def _schema() -> DictConfig:
    schema: DictConfig = OmegaConf.structured(Config)
    return schema


def _with_one_preset(source: DictConfig) -> DictConfig:
    """Drop the presets that are not chosen, in place: to check their types takes as long as all the rest.

    Raises: UserError if there is none of the name that is chosen.
    """
    preset = OmegaConf.select(source, "trainer.preset", default=None)
    blocks = OmegaConf.select(source, "presets", default=None)
    if blocks and preset not in blocks:
        raise unknown("trainer preset", preset, blocks)
    with open_dict(source):
        for name in [name for name in blocks or () if name != preset]:
            del blocks[name]
    return source


def _without_nulls(source: DictConfig) -> DictConfig:
    """Drop null entries of `NAMED` mappings, and those that are null, which removes what is inherited; return it."""
    with open_dict(source):
        for key in NAMED:
            named = OmegaConf.select(source, key, default=None)
            section, _, name = key.partition(".")
            if named is None and isinstance(source.get(section), DictConfig):
                source[section].pop(name, None)
            routes = list(named.values()) if key == "routing.routes" and isinstance(named, DictConfig) else []
            for mapping in [named, *routes]:
                for name in list(mapping) if isinstance(mapping, DictConfig) else []:
                    if mapping._get_node(name)._is_none():
                        del mapping[name]
    return source


def _require_containers(key: str, value: Any, kind: Any) -> None:
    """Raise UserError where there should be a mapping or a list and is something else; OmegaConf does not say where."""
    kind = _required(kind)
    base: Any = get_origin(kind) or kind
    mapping = base is dict or is_dataclass(base)
    if value is None or not (mapping or base is list):
        return
    if not isinstance(value, dict if mapping else list):
        raise UserError(f"{key}={value}: must be a {'mapping' if mapping else 'list'}")
    hints = get_type_hints(base) if is_dataclass(base) else {}
    children: Iterable[tuple[Any, Any]] = value.items() if isinstance(value, dict) else enumerate(value)
    for name, inner in children:
        child = hints.get(name, Any) if is_dataclass(base) else get_args(kind)[int(mapping)]
        _require_containers(f"{key}.{name}" if key else str(name), inner, child)


def _required(kind: Any) -> Any:
    """Return the kind of an optional value."""
    return get_args(kind)[0] if get_origin(kind) in (Union, UnionType) else kind


def _require_type(key: str, value: Any, kind: Any) -> None:
    """Raise UserError for a value not of its field's type; OmegaConf lets a list be a value of a mapping to numbers."""
    if kind is Any or (value is None and type(None) in get_args(kind)):
        return
    kind = _required(kind)
    base: Any = get_origin(kind) or kind
    name = "mapping" if base is dict or is_dataclass(base) else base.__name__
    holds = isinstance(value, (int, float) if base is float else base)
    if not holds or (isinstance(value, bool) and base is not bool):
        raise UserError(f"{key}={value}: must be of type {name}")
    for child, inner, child_kind in _children(value, kind):
        _require_type(f"{key}.{child}" if key else str(child), inner, child_kind)


def _children(value: Any, kind: Any) -> list[tuple[object, Any, Any]]:
    """Return the name or index, the value and the type of each item inside a value."""
    if is_dataclass(kind):
        hints = get_type_hints(kind)
        return [(entry.name, getattr(value, entry.name), hints[entry.name]) for entry in fields(kind)]
    if get_origin(kind) is dict:
        return [(name, inner, get_args(kind)[1]) for name, inner in value.items()]
    return [(place, inner, get_args(kind)[0]) for place, inner in enumerate(value)] if get_origin(kind) is list else []


def _readable(error: OmegaConfBaseException) -> UserError:
    """Turn OmegaConf's report into one line, with the nearest valid key if the key is unknown."""
    key = str(error.full_key or "?")
    parent, _, last = key.rpartition(".")
    kind: Any = error.object_type
    if is_dataclass(kind):
        names = [entry.name for entry in fields(kind)]
        if last not in names:
            return unknown("key", key, [f"{parent}.{name}" if parent else name for name in names])
    said = str(error).splitlines()[0]
    kinds = {"is not a ListConfig": "a list", "is not a DictConfig": "a mapping", " to Dict[": "a mapping"}
    right = next((f"must be {kind}" for fault, kind in kinds.items() if fault in said), said)
    return UserError(f"{key}: {right}")
