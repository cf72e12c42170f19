"""Convert a configuration to plain data, and decide which configurations describe the same run."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import asdict
from typing import Any

from gradroute.config.schema import Config

ASKED = ("presets", "audits", "seeds", "stack", "trained")  # how a run was requested, not what it computes
LATER = ("environment", "profiles")  # sections that were added later: without them, a run is that of an older version
# where a run is made and recorded, not what it computes
ELSEWHERE = (
    "output_dir", "dataset.root", "trainer.device", "trainer.graph", "trainer.deterministic", "tracker", "checkpoint",
)  # fmt: skip


def to_mapping(config: Config) -> dict[str, Any]:
    """Return a configuration as a plain nested dictionary, as saved in a run folder."""
    mapping = asdict(config)
    for key in ASKED:
        del mapping[key]
    for key in LATER:
        if mapping[key] is None:
            del mapping[key]
    auto = config.routing.auto
    if auto is None or auto.found is not None:  # as in all runs: what was found has replaced it
        del mapping["routing"]["auto"]
    return mapping


def one_by_seed(config: Config) -> list[Config]:
    """Return one configuration per seed that `seeds` asks for; a single one if it is null."""
    runs = [deepcopy(config) for _ in range(config.seeds or 1)]
    for number, run in enumerate(runs):
        run.seed, run.seeds = config.seed + number, None
    return runs


def flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested mappings into one with dotted keys."""
    items: dict[str, Any] = {}
    for key, value in mapping.items():
        name = f"{prefix}{key}"
        items |= flat(value, f"{name}.") if isinstance(value, dict) and value else {name: value}
    return items


def without(mapping: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """Return a copy of nested mappings without some dotted keys; missing keys are ignored."""
    kept = deepcopy(dict(mapping))
    for key in keys:
        *outer, last = key.split(".")
        inner = kept
        for name in outer:
            inner = inner.get(name, {})
        inner.pop(last, None)
    return kept


def differing(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys of two flat mappings whose values differ, or that only one of them has."""
    return [k for k in {**one, **other} if one.get(k) != other.get(k) or (k in one) != (k in other)]


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two saved configurations describe different runs; those in `ELSEWHERE` may differ."""
    keys = differing(flat(one), flat(other))
    return [key for key in keys if not any(key == place or key.startswith(f"{place}.") for place in ELSEWHERE)]


def config_hash(config: Config) -> str:
    """Return eight hex digits, equal for runs that differ at most in seed, device, paths, tracker and checkpoints."""
    mapping = without(to_mapping(config), ("seed", *ELSEWHERE))
    return hashlib.sha256(json.dumps(mapping, sort_keys=True).encode()).hexdigest()[:8]


def run_identity(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return what two saved configurations of the same run share: everything but the checkpoint interval."""
    return without(mapping, ("checkpoint.minutes",))
