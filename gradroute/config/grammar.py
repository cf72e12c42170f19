"""Overrides as Hydra's command line takes them."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
WORDS = {"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"}  # that would not be read as text


def literal(value: Any) -> str:
    """A value as Hydra's grammar of overrides writes it."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else QuotedString(value, Quote.double).with_quotes()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def merged(*parts: Sequence[str]) -> list[str]:
    """Overrides, of which a later one of the same key replaces an earlier one."""
    found: dict[str, str] = {}
    for override in (override for part in parts for override in part):
        key = override.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = override
    return list(found.values())
