"""`routing.auto`: regions and routes that a pilot is to find before the run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from gradroute.config.limits import WEIGHT, require, require_number
from gradroute.errors import unknown

if TYPE_CHECKING:
    from gradroute.config.schema import Config, GroupConfig

LEAST = 32  # examples of a group
LARGEST = 0.1  # share of a run that a pilot may take
CLUSTER = "cluster"  # the metadata column of clusters
PREFIX = "for_"  # of a region that is named after its group
UNKNOWN = "to_be_found"  # the site of a region until the pilot has found it


@dataclass
class AutoConfig:
    """How a pilot finds regions and routes; see `gradroute.search.pilot`.

    share: the pilot's updates as a share of the run's, at most 0.1.
    points: data points of each group whose gradients are measured, at most.
    sites: candidates, by name; none given: all that the model has. axis: that of their units; null is 1 for the
        channels of convolutions, else the last.
    checked: number of candidates that are tried and ablated, those with the most conflict.
    outside: gradient weight outside of a group's own region; null computes it.
    labels: whether the groups are those of the experiment. If not, they are clusters of the data points' gradients.
    clusters: numbers of clusters to choose from. If a step names a group of the experiment, such as the one that is
        relearned, there are as many clusters as groups, which take their names: the smallest is the first group.
    ablate: group whose region is ablated; null is each in turn or, where the experiment relearns a group, that group.
    found: set by the pilot: the folder of the mask and its evidence, which the run keeps.

    `key` is where these settings stand, for messages; a search has a class of its own.
    """

    key: ClassVar[str] = "routing.auto"

    share: float = LARGEST
    points: int = 512
    sites: list[str] = field(default_factory=list)
    axis: int | None = None
    checked: int = 3
    outside: float | None = None
    labels: bool = True
    clusters: list[int] = field(default_factory=lambda: [2, 3, 4, 5])
    ablate: str | None = None
    found: str | None = None


def check_auto(auto: AutoConfig) -> None:
    """Raise UserError for a value outside of its range."""
    key = auto.key
    require(auto.found is None, f"{key}.found", auto.found, "null: the pilot sets it")
    require_number(f"{key}.share", auto.share, 1e-6, LARGEST)
    require_number(f"{key}.points", auto.points, LEAST, 10**6, int)
    require_number(f"{key}.checked", auto.checked, 1, 1000, int)
    if auto.outside is not None:
        require_number(f"{key}.outside", auto.outside, -WEIGHT, WEIGHT)
    right = "numbers of clusters from 2 on, each once"
    fits = bool(auto.clusters) and min(auto.clusters) > 1 and len(set(auto.clusters)) == len(auto.clusters)
    require(fits, f"{key}.clusters", auto.clusters, right)
    require(len(set(auto.sites)) == len(auto.sites), f"{key}.sites", auto.sites, "each site once")


def cluster_groups(names: Sequence[str]) -> "dict[str, GroupConfig]":
    """Return groups by the metadata column of clusters, whose numbers are those of the names."""
    from gradroute.config.schema import GroupConfig

    return {name: GroupConfig(column=CLUSTER, values=[str(n)]) for n, name in enumerate(names)}


def named_clusters(config: "Config") -> list[str] | None:
    """Return the groups of an experiment and its steps, whose names clusters take; None if nothing names a group."""
    steps, routing = (section for section in vars(config).values() if isinstance(section, Mapping)), config.routing
    named = [step["group"] for step in steps if isinstance(step.get("group"), str)]
    named += [*([routing.unlabelled] if routing.unlabelled else []), *routing.left_out, *routing.label_noise]
    return list(dict.fromkeys([*config.routing.groups, *named])) if named else None


def cluster_names(count: int) -> list[str]:
    """Return names for some clusters."""
    return [f"cluster_{n}" for n in range(count)]


def region_names(config: "Config") -> list[str]:
    """Return the names of regions that are found, in the order of the groups.

    They are those of the experiment's certificates, if there is one for each group, so that all else that the
    experiment says of them holds; else `for_GROUP`, as where they were named after other groups.
    """
    groups, named = list(config.routing.groups), config.losses.certificates
    own = len(named) == len(groups) and not all(name.startswith(PREFIX) for name in named)
    return list(named) if own else [f"{PREFIX}{group}" for group in groups]


def removed_group(config: "Config", auto: AutoConfig) -> str | None:
    """Return the group that is to be removed: the one that is named, or that the experiment relearns; None for none."""
    return auto.ablate or (str(config.relearn["group"]) if config.relearn else None)


def expand_auto(config: "Config") -> None:
    """Give a configuration with `routing.auto` one region for each group, at a site that is to be found.

    What the experiment says of its own regions holds for these: whether they have certificates, their L1 weight, the
    first one, and, if one is ablated, that of the group `ablate`.

    Raises: UserError for values that do not fit.
    """
    from gradroute.config.schema import RegionConfig

    auto, losses = config.routing.auto, config.losses
    assert auto is not None
    check_auto(auto)
    if not auto.labels:
        config.routing.groups = cluster_groups(named_clusters(config) or cluster_names(2))  # until they are found
    groups = list(config.routing.groups)
    right = "two or more, for each of which a region is to be found"
    require(len(groups) > 1, "routing.groups", groups, right)
    names = region_names(config)
    config.routing.regions = {name: RegionConfig(site=UNKNOWN) for name in names}
    owner = dict(zip(groups, names, strict=True))
    config.routing.routes = {g: {owner[other]: 0.0 for other in groups if other != g} for g in groups}
    weight = next(iter(losses.l1.values()), 0.0)
    losses.l1 = dict.fromkeys(names, weight) if weight else {}
    losses.certificates = names if losses.certificates else []
    ablated = removed_group(config, auto)
    if ablated is not None and ablated not in groups:
        raise unknown(f"group of {auto.key}.ablate:", ablated, groups)
    config.ablation["region"] = None if ablated is None else owner[ablated]
