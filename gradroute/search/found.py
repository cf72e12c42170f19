"""A mask that was found: the evidence for it, its routing, and the files that it leaves."""

import copy
import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from gradroute.config.auto import region_names
from gradroute.config.overrides import literal
from gradroute.config.schema import Config, RegionConfig
from gradroute.config.split import stated
from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.atomic import write_atomically

ROUTING, EVIDENCE, UNITS, RECORD = "routing.yaml", "mask_sites.csv", "mask_units.csv", "mask.json"
PICTURE = "plots/mask_found.png"


@dataclass
class Evidence:
    """What a pilot found at a candidate.

    conflict, cosine, overlap: see `gradroute.search.agreement`; cosine and overlap are means over units and pairs. None
    if gradients were not compared.
    owner: the group of every unit. shares: of each group in every unit's gradient norm, or in its learned weights.
    outside: gradient weight of each group (row) in the units of each group (column).
    only_way: whether nothing passes by the site; see `gradroute.search.signals.only_way`.
    held: see `gradroute.search.agreement.held`. numbers: how many a data point, or a token, has there.
    own, others, whole: rises of each group's loss when its own units, those of others, or all are ablated, after a few
    updates under the candidate's mask. leak: how much of each group's units the others' units tell; see
    `agreement.leak`. score: contrast of the rises times what does not leak. None if the candidate was not checked.
    """

    name: str
    modules: list[str]
    axis: int
    output: Any
    conflict: float | None
    cosine: float | None
    overlap: float | None
    owner: list[int]
    shares: list[list[float]]
    outside: list[list[float]]
    held: float | None = None
    own: list[float] | None = None
    others: list[float] | None = None
    whole: list[float] | None = None
    leak: list[float] | None = None
    score: float | None = None
    numbers: int = 0
    only_way: bool = False


@dataclass
class Found:
    """A mask, and how it was found.

    method: its name. groups: their names. chosen: the number of the candidate. updates: what it cost, in updates; a
    backward pass of a batch counts as one. why: one paragraph. details: the settings of the method.
    """

    method: str
    groups: list[str]
    evidence: list[Evidence]
    chosen: int
    updates: int
    why: str
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def site(self) -> Evidence:
        """The candidate that was chosen."""
        return self.evidence[self.chosen]

    def applied(self, config: Config) -> Config:
        """Return a configuration with this mask in the place of its own.

        The regions have the names of the experiment's certificates, if there is one for each group; else `for_GROUP`.
        They have certificates and the first region's L1 weight if the experiment's have. If some of its regions are
        ablated, that of the group which owns them is.
        """
        made, site = copy.deepcopy(config), self.site
        names = dict(zip(self.groups, region_names(config), strict=True))
        made.routing.auto = None
        made.routing.regions, made.routing.routes = {}, {}
        for number, group in enumerate(self.groups):
            units = [unit for unit, owner in enumerate(site.owner) if owner == number]
            place = site.modules[0] if len(site.modules) == 1 else list(site.modules)
            axis = None if site.axis == -1 else site.axis
            made.routing.regions[names[group]] = RegionConfig(
                site=place, units=ranged(units), axis=axis, output=site.output
            )
            weights = site.outside[number]
            row = {names[other]: weights[n] for n, other in enumerate(self.groups) if n != number}
            made.routing.routes[group] = {region: weight for region, weight in row.items() if weight != 1}
        weight = next(iter(config.losses.l1.values()), 0.0)
        made.losses.l1 = dict.fromkeys(names.values(), weight) if weight else {}
        made.losses.certificates = list(names.values()) if config.losses.certificates else []
        made.ablation["region"] = self._ablated(config, names)
        return made

    def _ablated(self, config: Config, names: dict[str, str]) -> Any:
        """Return the region to ablate: that of the group that relearns, or whose route names the ablated region."""
        given = config.ablation.get("region")
        if given is None or given in names.values():
            return given
        if config.relearn:
            return names[str(config.relearn["group"])]
        if config.finetune:  # on what is retained: the others' region was ablated
            return next(region for group, region in names.items() if group != config.finetune["group"])
        return names[self.groups[0]]


def ranged(units: Sequence[int]) -> Any:
    """Return units as a configuration has them: a range as `"0:16"`, else a list."""
    whole = list(units) == list(range(units[0], units[0] + len(units)))
    return f"{units[0]}:{units[0] + len(units)}" if whole else list(units)


def routing_of(config: Config) -> dict[str, Any]:
    """Return a configuration's routing as an option of `conf/routing` states it."""
    routing = asdict(config.routing)
    given = {key: value for key, value in routing.items() if value is not None and key != "auto"}
    blank = {"labels": [], "words": [], "values": [], "rest": False, "tokens": "all"}
    rules = {
        name: {k: v for k, v in rule.items() if v is not None and blank.get(k) != v}
        for name, rule in routing["groups"].items()
    }
    regions = {name: stated(region) for name, region in config.routing.regions.items()}
    return given | {"groups": rules, "regions": regions}


def overrides_to(base: Config, wanted: Config) -> list[str]:
    """Return overrides that turn a configuration's groups, regions and routes, and what names them, into another's."""
    found: list[str] = []

    def differ(key: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
        found.extend(f"{key}.{name}=null" for name in ours if name not in theirs)
        found.extend(f"{key}.{name}={literal(v)}" for name, v in theirs.items() if name not in ours or ours[name] != v)

    differ(
        "routing.groups",
        {name: asdict(rule) for name, rule in base.routing.groups.items()},
        {name: asdict(rule) for name, rule in wanted.routing.groups.items()},
    )
    blank = asdict(RegionConfig())
    for name in base.routing.regions:
        if name not in wanted.routing.regions:
            found.append(f"routing.regions.{name}=null")
    for name, region in wanted.routing.regions.items():
        ours = asdict(base.routing.regions[name]) if name in base.routing.regions else blank
        changed = {key: value for key, value in asdict(region).items() if ours[key] != value}
        found += [f"routing.regions.{name}.{key}={literal(value)}" for key, value in changed.items()]
    gone = [group for group in base.routing.routes if group not in wanted.routing.groups]
    found += [f"routing.routes.{group}=null" for group in gone]
    for group in wanted.routing.groups:
        ours, theirs = base.routing.routes.get(group, {}), wanted.routing.routes.get(group, {})
        differ(f"routing.routes.{group}", ours, theirs)
    differ("losses.l1", base.losses.l1, wanted.losses.l1)
    differ("dataset", base.dataset, wanted.dataset)
    if base.losses.certificates != wanted.losses.certificates:
        found.append(f"losses.certificates={literal(wanted.losses.certificates)}")
    if base.ablation.get("region") != wanted.ablation.get("region"):
        found.append(f"ablation.region={literal(wanted.ablation['region'])}")
    return found


def unrouted(config: Config) -> Config:
    """Return the configuration without routes, whose run shows which units the groups use by themselves."""
    return replace(config, routing=replace(config.routing, routes={}))


def _csv(rows: Sequence[Sequence[object]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()


def _sites_csv(found: Found) -> str:
    columns: list[object] = ["site", "units", "numbers", "only way", "chosen"]
    columns += ["conflict", "cosine", "overlap", "held", "score"]
    kinds = ("own rise", "rise by others", "whole rise", "leak")
    columns += [f"{what} {group}" for what in kinds for group in found.groups]
    rows: list[list[object]] = [columns]
    for number, one in enumerate(found.evidence):
        checked = [f"{v:.6g}" for part in (one.own, one.others, one.whole, one.leak) for v in part or ()]
        means = (one.conflict, one.cosine, one.overlap, one.held)
        numbers = ["" if value is None else f"{value:.6g}" for value in means]
        score = "" if one.score is None else f"{one.score:.6g}"
        marks = ["yes" if mark else "" for mark in (one.only_way, number == found.chosen)]
        row: list[object] = [one.name, len(one.owner), one.numbers, *marks, *numbers, score, *checked]
        rows.append(row + [""] * (len(columns) - len(row)))
    return _csv(rows)


def _units_csv(found: Found) -> str:
    rows: list[list[object]] = [["site", "unit", "group", *(f"share {group}" for group in found.groups)]]
    for one in found.evidence:
        for unit, owner in enumerate(one.owner):
            rows.append([one.name, unit, found.groups[owner], *(f"{row[unit]:.6g}" for row in one.shares)])
    return _csv(rows)


def texts_of(found: Found, config: Config) -> dict[str, str]:
    """Return the files of a mask, by name: its routing, evidence and record; `config` is where it was applied."""
    note = "".join(f"# {line}\n" for line in found.why.splitlines())
    how = "# Copied to my_lab/conf/routing/found.yaml: gradroute-run --config-dir my_lab/conf routing=found\n"
    return {
        ROUTING: note + how + yaml.safe_dump(routing_of(config), sort_keys=False),
        EVIDENCE: _sites_csv(found),
        UNITS: _units_csv(found),
        RECORD: json.dumps(asdict(found), indent=1) + "\n",
    }


def write(found: Found, config: Config, folder: Path) -> None:
    """Write the files of a mask, and its picture, to a folder; then remove the checkpoints of its finding.

    The record comes last of the files.
    """
    from gradroute.search.pictures import picture

    (folder / PICTURE).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / PICTURE, picture(found))
    for name, text in texts_of(found, config).items():
        write_atomically(folder / name, text)
    checkpoints.remove(folder)


def read(folder: Path) -> Found | None:
    """Return the mask in a folder; None if there is none yet. Raises: UserError if it is damaged."""
    path = folder / RECORD
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text())
        return Found(**{**content, "evidence": [Evidence(**one) for one in content["evidence"]]})
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: damaged ({type(error).__name__}); delete {folder} to find the mask again") from None
