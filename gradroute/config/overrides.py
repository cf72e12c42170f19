"""Write overrides in Hydra's grammar, and let open mappings accept new keys.

Hydra adds a key that is not in the configuration only with a prefix `+`. The user names groups, regions and routes, and
a component's arguments may have defaults in its signature: in these mappings, `key=value` sets or adds a key, as does a
mapping that is a value. The checks of the configuration find misspelt keys.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Glob, Override, Quote, QuotedString
from hydra.errors import HydraException

from gradroute.config.components import SECTIONS
from gradroute.config.schema import GroupConfig, RegionConfig
from gradroute.errors import UserError

PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
WORDS = {"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"}  # words that Hydra does not read as text
OPEN = (
    "dataset.", "model.", "task.", "ablation.", "tracker.", "privacy.", *(f"{section}." for section in SECTIONS),
    "completions.", "routing.groups.", "routing.regions.", "routing.routes.", "routing.label_noise.", "losses.l1.",
    "losses.groups.", "losses.error.", "routing.auto.",
)  # fmt: skip
# mappings with names chosen by the user, in which null removes an inherited entry
NAMED = ("routing.groups", "routing.regions", "routing.routes", "routing.label_noise", "losses.l1", "losses.groups")
EMPTY = re.compile(r"(^|,)\s*\{\s*\}\s*(?=,|$)")  # alone or in a sweep; Hydra would merge it, which changes nothing
UNSAID = (  # keys that the files state only where they are used
    *SECTIONS, "audits", "privacy", "completions", "losses.groups", "losses.error", "losses.penalties",
    "routing.left_out", "routing.unlabelled", "routing.compensate", "routing.compensate_limit", "routing.auto",
)  # fmt: skip
GROUP = re.compile(r"routing\.groups\.([^.]+)(?:\.(\w+))?")
REGION = re.compile(r"routing\.regions\.([^.=]+)(?:\.(\w+))?")
OWN = {  # a kind of region, and its keys
    "site": ("site", "units", "axis", "output"), "part": ("part", "layers"), "parameters": ("parameters", "outside"),
    "adapter": ("adapter", "of", "rank", "alpha", "start"), "module": ("module",),
}  # fmt: skip
SHARED = {"units": ("site", "part"), "axis": ("parameters",)}  # keys, and the other kinds that have them
REGIONS = {  # a kind, and the others' keys
    kind: tuple(key for other in OWN if other != kind for key in OWN[other] if kind not in SHARED.get(key, ()))
    for kind in OWN
}
RULES = ("labels", "column", "predicate", "words", "pattern", "rest")
KINDS = {  # a kind of rule, and the keys of the others
    rule: (*(other for other in RULES if other != rule), *(("values",) if rule != "column" else ()),
           *(("tokens",) if rule != "words" else ())) for rule in RULES
}  # fmt: skip
BLANK = ("null", "[]", "false", "''", '""')
OPTIONS = {  # groups of options, and one of each
    "experiment": "mnist_split", "trainer": "fast", "presets": "language", "dataset": "mnist", "model": "autoencoder",
    "task": "reconstruction", "routing": "mnist_halves", "ablation": "zero", "tracker": "tensorboard",
    "environment": "grid", "audit": "by_trainer",
}  # fmt: skip
HYDRA_FOLDERS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir")


def own_folders(key: str) -> UserError:
    """Return the error for a key that would have Hydra make folders."""
    return UserError(f"{key}: gradroute makes the folders of runs and sweeps; give output_dir=FOLDER")


def literal(value: Any) -> str:
    """Format a value in Hydra's grammar of overrides."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{literal(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(literal, value)) + "]"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and value.lower() not in WORDS
        return value if plain else QuotedString(value, Quote.double).with_quotes()
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def merged(*parts: Sequence[str]) -> list[str]:
    """Merge lists of overrides; a later override replaces an earlier one of the same key."""
    found: dict[str, str] = {}
    for override in (override for part in parts for override in part):
        key = override.partition("=")[0].lstrip("+")
        found.pop(key, None)
        found[key] = override
    return list(found.values())


def prepared(overrides: Sequence[str]) -> list[str]:
    """Rewrite overrides so that they may add keys to open mappings and replace a group's rule by another kind.

    Raises: UserError for Hydra's own folders, or if the name of an option is no text.
    """
    for override in overrides:
        _require_option(override)
    for key in (override.partition("=")[0].lstrip("+~") for override in overrides):
        if key in HYDRA_FOLDERS:
            raise own_folders(key)
    rules = _cleared(overrides, GROUP, "routing.groups", KINDS, GroupConfig())
    regions = _cleared(overrides, REGION, "routing.regions", REGIONS, RegionConfig())
    return [*map(_opened, overrides), *rules, *regions, *_cleared_place(overrides)]


def plain(overrides: Sequence[str]) -> list[str]:
    """Return overrides as the user wrote them, without the `++` that `prepared` adds."""
    return [o[2:] if o.startswith("++") and _opened(o[2:]) == o else o for o in overrides]


def _opened(override: str) -> str:
    key, equals, value = override.partition("=")
    if not equals or key[:1] in "+~-":
        return override
    if (found := GROUP.fullmatch(key)) and found[2] is None and (rule := _whole_rule(override)) is not None:
        return rule
    if key in NAMED:
        return f"++{key}=" + EMPTY.sub(r"\1null", value)
    mapping = value.lstrip()[:1] == "{" and key != "presets"  # of which one that is misspelt would be ignored
    return f"++{override}" if mapping or key in UNSAID or key.startswith(OPEN) else override


def _parsed(override: str) -> Override | None:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException:  # Hydra reports it later
        return None


def _require_option(override: str) -> None:
    """Raise UserError if what is to choose an option of a group, or several, is no name; Hydra does not say the key."""
    key = override.partition("=")[0].lstrip("+")
    parsed = _parsed(override) if key in OPTIONS else None
    if parsed is None:
        return
    given = parsed._value
    values = given.list if isinstance(given, ChoiceSweep) else [given]
    names = [name for value in values for name in (value if isinstance(value, list) else [value])]
    if not all(isinstance(name, str | QuotedString | Glob | Mapping) for name in names):
        raise UserError(f"{override}: must be the name of an option, such as {OPTIONS[key]}")


def _whole_rule(override: str) -> str | None:
    """Complete `routing.groups.NAME={…}` with the defaults of all other keys, so that nothing of the old rule remains.

    Return None for a mapping without a rule, such as `{tokens: all}`, which changes the existing rule.
    """
    parsed = _parsed(override)
    value = parsed.value() if parsed is not None and not parsed.is_sweep_override() else None
    if parsed is None or not isinstance(value, Mapping):
        return None
    given = {str(key): inner for key, inner in value.items()}
    if not set(RULES) & given.keys():
        return None
    blank = GroupConfig()
    whole = {field.name: getattr(blank, field.name) for field in fields(GroupConfig)} | given
    return f"++{parsed.key_or_group}={literal(whole)}"


def _given(overrides: Sequence[str], pattern: re.Pattern[str]) -> dict[str, dict[str, bool]]:
    """Return the keys that overrides give of each group or region, and whether the value is more than blank."""
    given: dict[str, dict[str, bool]] = {}
    for override in overrides:
        key, equals, text = override.lstrip("+").partition("=")
        if not equals or not (found := pattern.fullmatch(key)):
            continue
        own = given.setdefault(found[1], {})
        if found[2]:
            own[found[2]] = text.strip() not in BLANK
            continue
        parsed = _parsed(override)
        value = parsed.value() if parsed is not None and not parsed.is_sweep_override() else None
        own |= {str(name): inner is not None for name, inner in value.items()} if isinstance(value, Mapping) else {}
    return given


def _cleared(
    overrides: Sequence[str], pattern: re.Pattern[str], prefix: str, kinds: Mapping[str, Sequence[str]], blank: object
) -> list[str]:
    """Return overrides that clear the other kinds' keys of each group or region of which one kind is given.

    Args:
        kinds: each kind, which is a key, and the keys of the others. blank: has their defaults.
    """
    return [
        f"++{prefix}.{name}.{key}={literal(getattr(blank, key))}"
        for name, keys in _given(overrides, pattern).items()
        if len(chosen := [kind for kind in kinds if keys.get(kind)]) == 1
        for key in kinds[chosen[0]]
        if key not in keys
    ]


def _cleared_place(overrides: Sequence[str]) -> list[str]:
    """Return an override that clears the layers to steer where a site is given in their place."""
    given = {key.lstrip("+"): value for key, _, value in (override.partition("=") for override in overrides)}
    named = given.get("steering.site", "null").strip() != "null" and "steering.layers" not in given
    return ["++steering.layers=null"] if named else []
