"""The shorthand `split.groups=[[0,2,4,6,8],[1,3,5,7,9]]`: each set of labels gets a region of its own."""

from collections.abc import Collection, Container, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

from gradroute.config.auto import PREFIX
from gradroute.config.doors import TARGET
from gradroute.config.limits import WIDTH, require_number
from gradroute.config.schema import Config, GroupConfig, RegionConfig, SplitConfig
from gradroute.config.targets import arguments_of, build, locate
from gradroute.errors import UserError, unknown


def group_name(labels: Sequence[int], noun: str = "digits") -> str:
    """Return the name of a set of labels: `digits_0_4` if three or more are consecutive, else such as `digits_1_3_5`.

    One label gives `digits_3`, as `digit_3` is the row of the single label in the metrics.
    """
    ordered = sorted(labels)
    if len(ordered) > 2 and ordered == list(range(ordered[0], ordered[-1] + 1)):
        ordered = [ordered[0], ordered[-1]]
    return "_".join([noun, *map(str, ordered)])


def _shares(units: Sequence[int] | None, groups: int, width: int) -> list[tuple[int, int]]:
    """Return each group's first unit and the one after its last. Raises: UserError if they do not fit the width."""
    if units is None:
        edges = [round(i * width / groups) for i in range(groups + 1)]
        return list(pairwise(edges))
    if len(units) != groups or min(units, default=0) < 1 or sum(units) > width:
        raise UserError(f"split.units={list(units)}: must be {groups} numbers above 0, at most {width} in total")
    return [(sum(units[:i]), sum(units[: i + 1])) for i in range(groups)]


def _encoding(model: dict[str, Any]) -> tuple[str, int | None, int | None]:
    """Return the key that sets the width of the site `encoder`, that width, and its axis (None: the last)."""
    known = getattr(locate(model[TARGET], "model"), "encoding_units", None)
    return known(**arguments_of(model)) if known else ("split.width", None, None)


def expand_split(config: Config) -> None:
    """Replace groups, regions, routes, certificates and L1 weights by those that `split` describes, and clear it.

    What is given of these very regions, such as `for_digits_0_4`, stands: their units, routes' weights, or L1 weight.

    Raises: UserError for a label in two sets, an empty set, units that do not fit, a site of unknown width, or settings
        without sets.
    """
    split = config.split
    if split.groups is None:
        if split != SplitConfig():
            raise UserError("split: its settings do nothing without split.groups; set it, such as [[0,1,2],[3,4]]")
        return
    _check_sets(split.groups)
    key, encoding, axis = _encoding(config.model)
    if split.site == "encoder" and encoding is not None and split.width not in (None, encoding):
        raise UserError(f"split.width={split.width}: must be null, or {key}={encoding}")
    width = encoding if split.site == "encoder" and encoding is not None else split.width
    if width is None:
        raise UserError(f"split.site={split.site}: give split.width, the number of its units")
    require_number("split.width", width, 1, WIDTH, int)
    noun = getattr(build(config.dataset, "dataset"), "label_noun", "class")
    names = [group_name(group, "classes" if noun == "class" else f"{noun}s") for group in split.groups]
    shares = dict(zip(names, _shares(split.units, len(names), width), strict=True))
    routing = config.routing
    routing.groups = {n: GroupConfig(labels=list(g)) for n, g in zip(names, split.groups, strict=True)}
    regions = {
        f"{PREFIX}{n}": RegionConfig(site=split.site, units=f"{first}:{stop}", axis=axis)
        for n, (first, stop) in shares.items()
    }
    routes = {n: {f"{PREFIX}{other}": split.outside for other in names if other != n} for n in names}
    _check_regions({*routing.regions, *config.losses.l1}.union(*routing.routes.values()), regions)
    weight = next(iter(config.losses.l1.values()), 0.0) if split.l1 is None else split.l1
    routing.routes = {n: each | _of(routing.routes.get(n, {}), regions) for n, each in routes.items()}
    own = {n: stated(routing.regions.get(n, RegionConfig())) for n in regions}
    routing.regions = {n: replace(region, **own[n]) for n, region in regions.items()}
    config.losses.l1 = dict.fromkeys(regions, weight) | _of(config.losses.l1, regions)
    config.losses.certificates = list(routing.regions) if config.losses.certificates else []
    config.split = SplitConfig()


def _check_regions(named: Iterable[str], regions: Collection[str]) -> None:
    """Raise UserError for a name such as `for_digits_0_4`, which only a split gives, of no region of this one."""
    lost = next((name for name in named if name.startswith(PREFIX) and name not in regions), None)
    if lost is not None:
        raise unknown("region of split.groups:", lost, regions)


def _of(values: Mapping[str, Any], regions: Container[str]) -> dict[str, Any]:
    """Return the values that some regions have."""
    return {name: value for name, value in values.items() if name in regions}


def stated(region: RegionConfig) -> dict[str, Any]:
    """Return what a region states, by key: what is not null."""
    return {key: value for key, value in asdict(region).items() if value is not None}


def _check_sets(groups: list[list[int]]) -> None:
    labels = [label for group in groups for label in group]
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice or not groups or not all(groups):
        fault = f"label {twice[0]} is named twice" if twice else "a set is empty" if groups else "it has no set"
        raise UserError(f"split.groups={groups}: {fault}; give disjoint sets such as [[0,1,2],[3,4]]")
