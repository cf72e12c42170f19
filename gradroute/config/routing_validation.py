"""Check groups, regions and routes, as far as neither model nor data is needed."""

import re

from gradroute.config.limits import MANY, WEIGHT, WIDTH, one_of, require, require_number
from gradroute.config.schema import GroupConfig, RegionConfig, RoutingConfig
from gradroute.errors import UserError
from gradroute.routing.routes import LARGEST, read_route

NAME = 64  # characters; a name becomes a part of file names
RESERVED = ("all", "default", "unassigned", "unlabelled")  # used in the metrics, the losses and the ledger


def check_name(key: str, name: object) -> None:
    """Raise UserError for a name that cannot be used in file names, tables and plots."""
    holds = isinstance(name, str) and 1 <= len(name) <= NAME and all(c.isalnum() or c in "_-" for c in name)
    require(holds and name[:1] != "-", key, name, f"1 to {NAME} letters, digits, _ and -")  # type: ignore[index]


def check_routing(routing: RoutingConfig) -> None:
    """Raise UserError at the first invalid name, rule or weight; convert weights to floats."""
    one_of("routing.unassigned", routing.unassigned, ("error", "unrouted"))
    require(bool(routing.groups), "routing.groups", "{}", "at least one group")
    owner: dict[int, str] = {}
    for name, group in routing.groups.items():
        check_name("routing.groups", name)
        reserved = name in RESERVED or re.fullmatch(r"(digit|class)_\d+", name)
        require(not reserved, "routing.groups", name, "another name: this one is reserved")
        _check_rule(f"routing.groups.{name}", group)
        for label in group.labels:
            if label in owner:
                raise UserError(
                    f"routing.groups: label {label} is in '{owner[label]}' and '{name}'; groups must not overlap"
                )
            owner[label] = name
    if routing.unlabelled is not None:
        one_of("routing.unlabelled", routing.unlabelled, tuple(routing.groups))
    for name, region in routing.regions.items():
        check_name("routing.regions", name)
        require(name != "all", "routing.regions", name, "another name: this one is reserved")
        _check_region(f"routing.regions.{name}", region)
        for other in region.outside or ():
            parts = tuple(key for key, value in routing.regions.items() if value.part or value.module)
            one_of(f"routing.regions.{name}.outside", other, parts)
    _check_adapters(routing)
    for group_name, row in routing.routes.items():
        one_of("routing.routes (group)", group_name, tuple(routing.groups))
        require(isinstance(row, dict), f"routing.routes.{group_name}", row, "a mapping of regions to weights")
        for region_name, spec in row.items():
            where = f"routing.routes.{group_name}"
            one_of(f"{where} (region)", region_name, tuple(routing.regions))
            route = read_route(spec, f"{where}.{region_name}")
            if routing.regions[region_name].module is not None and route.forward == 0:
                right = "0, as forward is 0: what is not used is not trained"
                require(route.weight == 0, f"{where}.{region_name}.weight", route.weight, right)
            row[region_name] = route.weight if not isinstance(spec, dict) else spec
    _check_labelling(routing)


def _check_region(where: str, region: RegionConfig) -> None:
    kinds = [name for name in ("site", "part", "parameters", "adapter", "module") if getattr(region, name) is not None]
    require(len(kinds) == 1, where, kinds, "a region with one of site, part, parameters, adapter and module")
    whole = region.part is not None and region.axis is None and region.output is None
    require(region.part is None or whole, where, region.part, "a region with part and without axis and output")
    require(region.part is not None or region.layers is None, f"{where}.layers", region.layers, "used with part")
    given = region.site if isinstance(region.site, list) else [region.site]
    right = "a module's name, a glob, or a list of them"
    named = bool(given) and all(isinstance(s, str) and s for s in given)
    require(region.site is None or named, f"{where}.site", region.site, right)
    known = region.output is None or type(region.output) in (int, str)
    require(known, f"{where}.output", region.output, "the number of an output, or its key")
    alone = region.parameters is None or (region.units is None and region.output is None)
    require(alone, where, region.units, "a region without units and output: its parameters name their own units")
    fits = region.outside is None or region.parameters is not None
    require(fits, f"{where}.outside", region.outside, "used with parameters")
    named = region.parameters is None or bool(region.parameters)
    require(named, f"{where}.parameters", region.parameters, "at least one parameter's name or glob")
    for key in ("units", "axis", "output") if region.module is not None else ():
        value = getattr(region, key)
        require(value is None, f"{where}.{key}", value, "left out: a module is a region as a whole")
    _check_adapter(where, region)


def _check_adapters(routing: RoutingConfig) -> None:
    owner: dict[str, str] = {}
    for name, region in routing.regions.items():
        if region.adapter is not None:
            fault = f"another name: region '{owner.get(region.adapter)}' has an adapter of this one"
            require(region.adapter not in owner, f"routing.regions.{name}.adapter", region.adapter, fault)
            owner[region.adapter] = name
    for name, region in routing.regions.items():
        right = "left out beside adapters, which are regions of parameters; or leave out the adapters"
        require(not owner or region.part is None, f"routing.regions.{name}.part", region.part, right)


def _check_adapter(where: str, region: RegionConfig) -> None:
    given = {key: getattr(region, key) for key in ("of", "rank", "alpha", "start")}
    for key, value in given.items():
        require(region.adapter is not None or value is None, f"{where}.{key}", value, "used with adapter")
    if region.adapter is None:
        return
    check_name(f"{where}.adapter", region.adapter)
    beside = {key: getattr(region, key) for key in ("units", "axis", "output")}
    for key, value in beside.items():
        require(value is None, f"{where}.{key}", value, "left out: an adapter is a region as a whole")
    named = region.of is None or (bool(region.of) and all(region.of))
    require(named, f"{where}.of", region.of, "null, or a list of layers, such as [q_proj, up_proj]")
    if region.rank is not None:
        require_number(f"{where}.rank", region.rank, 1, WIDTH, int)
    if region.alpha is not None:
        require_number(f"{where}.alpha", region.alpha, 1e-6, WEIGHT)


def _scheduled(spec: object) -> bool:
    route = read_route(spec, "routing.routes")
    return bool(route.start or route.ramp or route.stop is not None)


def _check_rule(where: str, group: GroupConfig) -> None:
    rules = {"labels": group.labels, "column": group.column, "predicate": group.predicate, "words": group.words,
             "pattern": group.pattern, "rest": group.rest or None}  # fmt: skip
    named = [rule for rule, value in rules.items() if value not in (None, [])]
    require(len(named) == 1, where, named or "{}", f"exactly one rule that is not empty: {', '.join(rules)}")
    if group.labelled is not None:
        require_number(f"{where}.labelled", group.labelled, 0, 1)
    one_of(f"{where}.tokens", group.tokens, ("all", "words", "frequent"))
    require(group.tokens != "words" or bool(group.words), f"{where}.tokens", group.tokens, "used with words only")
    for label in group.labels:
        require_number(f"{where}.labels", label, 0, MANY, int)
    require(group.column != "", f"{where}.column", "''", "a column's name")
    paired = (group.column is None) == (not group.values)
    require(paired, f"{where}.values", group.values, "given if, and only if, column is")
    plain = all(isinstance(value, str | int | float) for value in group.values)
    require(plain, f"{where}.values", group.values, "a list of texts or numbers")
    if group.predicate is not None:
        module, _, function = group.predicate.partition(":")
        named_well = all(part.isidentifier() for part in [*module.split("."), function])
        require(named_well, f"{where}.predicate", group.predicate, "module:function")


def _check_labelling(routing: RoutingConfig) -> None:
    if routing.compensate is not None:
        one_of("routing.compensate", routing.compensate, ("labels",))
        scheduled = [group for group, row in routing.routes.items() if any(map(_scheduled, row.values()))]
        right = "null, as a route has a schedule; or give routes without start, ramp and stop"
        require(not scheduled, "routing.compensate", routing.compensate, right)
    if routing.compensate_limit is not None:
        require_number("routing.compensate_limit", routing.compensate_limit, 0, LARGEST)
    for name in routing.left_out:
        one_of("routing.left_out", name, tuple(routing.groups))
    fewer = len(set(routing.left_out)) == len(routing.left_out) < len(routing.groups)
    require(fewer, "routing.left_out", routing.left_out, "some of the groups, each once, and not all")
    for name, rates in routing.label_noise.items():
        one_of("routing.label_noise", name, tuple(routing.groups))
        for key, rate in (("false_positive", rates.false_positive), ("false_negative", rates.false_negative)):
            require_number(f"routing.label_noise.{name}.{key}", rate, 0, 1)
    total = sum(rates.false_positive for rates in routing.label_noise.values())
    require(total <= 1, "routing.label_noise", total, "at most 1, summed over all false_positive")
