"""Regions: named sets of units at one or more sites of a model."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError, unknown
from gradroute.routing.sites import Found, Site, survey

RANGE_LENGTH = 64  # characters
HEAD_COUNTS = ("num_heads", "n_heads", "n_head", "nhead", "num_attention_heads")


@dataclass(frozen=True)
class Region:
    """Units on one axis of the output of one or more modules.

    site: a module's dotted name, a glob over names (`blocks.*.mlp.act`), or several of either.
    units: None for all, `"0:16"`, `"16:"` to the last, `"0:32:2"`, a list, a mask of one bool per unit, or heads of an
        attention layer, `{"heads": [3, 7], "of": 12}`; see `parse_units`. The same at every site.
    axis: the units' axis, such as 1 for the channels of a convolution. `batch_axis`: the axis of the data points.
    output: which output of a module that returns several: an index of a tuple, or a key of a mapping.
    """

    site: str | Sequence[str]
    units: Any = None
    axis: int = -1
    output: int | str | None = None
    batch_axis: int = 0

    @property
    def sites(self) -> tuple[Site, ...]:
        """The region's sites; in `Router.regions`, globs are resolved to names."""
        names = [self.site] if isinstance(self.site, str) else self.site
        return tuple(Site(name, self.axis, self.output, self.batch_axis) for name in names)

    @property
    def width(self) -> int:
        """The number of units over all sites, for a region of `Router.regions`."""
        return len(self.units) * len(self.sites)

    def at(self, activation: torch.Tensor, site: Site) -> torch.Tensor:
        """Return the region's part of one site's activation, `(batch, …, units)`; a view if the units are a range."""
        return self.take(site.units_last(activation))

    def take(self, values: torch.Tensor) -> torch.Tensor:
        """Return the region's part of a tensor with a site's units on its last axis; a view if they are a range."""
        return values[..., places(self.units)]

    def select(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return the region's activations, `(batch, …, units)`, concatenated over its sites.

        Raises: UserError if the sites' activations differ in another axis than the units'.
        """
        parts = [self.at(activations[site.name], site) for site in self.sites]
        if len({part.shape[:-1] for part in parts}) > 1:
            shapes = {site.name: tuple(activations[site.name].shape) for site in self.sites}
            raise UserError(f"a region over sites of shapes {shapes} cannot be read as one activation; split it")
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def places(units: Sequence[int]) -> slice | list[int]:
    """Return an index of units on an axis: a slice, which makes a view, if they follow one another."""
    first, count = units[0], len(units)
    return slice(first, first + count) if list(units) == list(range(first, first + count)) else list(units)


def _heads(spec: Mapping[str, Any], width: int, default: int | None, where: str) -> list[int]:
    """Return the units of attention heads; `parts` is 3 if one output holds queries, keys and values."""
    of, parts = spec.get("of", default), spec.get("parts", 1)
    right = "{heads: [3, 7], of: number of heads, parts: 3 for a fused query-key-value output}"
    if set(spec) - {"heads", "of", "parts"} or not all(type(n) is int and n > 0 for n in (of, parts)):
        raise UserError(f"{where}: {dict(spec)} cannot be read as heads; give {right}")
    if width % (of * parts):
        raise UserError(f"{where}: {width} units are not {parts} x {of} heads of one size; give {right}")
    heads, size = parse_units(spec["heads"], of, f"{where}, heads"), width // (of * parts)
    return [(part * of + head) * size + i for part in range(parts) for head in heads for i in range(size)]


def parse_units(spec: object, width: int, where: str, heads: int | None = None) -> tuple[int, ...]:
    """Return the indices, ascending, of units on an axis of size `width`.

    Args:
        spec: None for all, `"start:stop"`, `"start:"`, `"start:stop:step"`, a list of numbers or of `width` bools, a
            bool tensor, or `{"heads": [3, 7], "of": 12}`: heads lie one after the other along the axis; `"parts": 3` if
            it holds queries, keys and values.
        where: the place that error messages name.
        heads: the number of heads if `of` is not given.

    Raises: UserError if `spec` cannot be read, is empty, repeats a unit or is out of range.
    """
    units: Sequence[int]
    right = f'null for all, a range in quotes like "0:{width}", a list like [0, 3] or {{heads: [1], of: 8}}'
    if isinstance(spec, torch.Tensor):
        spec = spec.tolist()
    if spec is None:
        units = range(width)
    elif isinstance(spec, int):
        raise UserError(
            f"{where}: {spec}: a bare number is not a range (YAML reads an unquoted 16:32 as 992); give {right}"
        )
    elif isinstance(spec, str) and re.fullmatch(r"[0-9]+:[0-9]*(:0*[1-9][0-9]*)?", spec) and len(spec) <= RANGE_LENGTH:
        first, stop, *step = spec.split(":")
        units = range(int(first), int(stop or width), *map(int, step))
    elif isinstance(spec, Mapping) and "heads" in spec:
        units = _heads(spec, width, heads, where)
    elif isinstance(spec, Sequence) and len(spec) == width and all(type(unit) is bool for unit in spec):
        units = [unit for unit, chosen in enumerate(spec) if chosen]
    elif isinstance(spec, Sequence) and all(type(unit) is int for unit in spec):
        units = sorted(spec)
    else:
        raise UserError(f"{where}: {spec!r} cannot be read as units; give {right}")
    if not units:
        raise UserError(f"{where}: {spec!r}: the region is empty; give {right}")
    if units[0] < 0 or units[-1] >= width:  # before a range, which could have billions, is expanded
        outside = units[0] if units[0] < 0 else units[-1]
        raise UserError(f"{where}: unit {outside} is out of range; units go from 0 to {width - 1}")
    if len(set(units)) < len(units):
        raise UserError(f"{where}: {spec!r}: name each unit once")
    return tuple(units)


def matching(pattern: str, names: Sequence[str], what: str) -> list[str]:
    """Return the names that match a name or glob. Raises: UserError, with the nearest ones, if there is none."""
    matched = [pattern] if pattern in names else [name for name in names if fnmatchcase(name, pattern)]
    if not matched:
        raise unknown(what, pattern, names)
    return matched


def resolve(
    model: nn.Module, regions: Mapping[str, Region], example: Any
) -> tuple[dict[str, Region], dict[str, Found]]:
    """Resolve globs to names and units to indices; also return what a forward pass of `example` shows of the sites.

    The pass runs in evaluation mode and does not change the model.

    Raises: UserError for a site that is not a module of the model or is not reached, a pattern that matches nothing,
        units out of range, or a region whose sites differ in width.
    """
    modules = [name for name in dict(model.named_modules()) if name]
    named: dict[str, Region] = {}
    for name, region in regions.items():
        patterns = [site.module for site in region.sites]
        sites = [site for pattern in patterns for site in matching(pattern, modules, f"site of region '{name}':")]
        if not sites:
            raise UserError(f"region '{name}' names no site; give at least one")
        named[name] = replace(region, site=tuple(dict.fromkeys(sites)))
    found = survey(model, [site for region in named.values() for site in region.sites], example)
    for name, region in named.items():
        shapes = {site: found[site.name].activation.shape for site in region.sites}
        widths = {site.name: shape[site.axis] for site, shape in shapes.items()}
        if len(set(widths.values())) > 1:
            raise UserError(f"region '{name}' has sites of different widths: {widths}; use one region for each width")
        site, shape = next(iter(shapes.items()))
        where = f"region '{name}', site '{site.name}' of shape {tuple(shape)}"
        units = parse_units(region.units, shape[site.axis], where, _head_count(model, site.module))
        named[name] = replace(region, units=units)
    return named, found


def _head_count(model: nn.Module, module: str) -> int | None:
    """Return the number of heads that the module, or the nearest one around it, declares."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        around = model.get_submodule(".".join(parts[:length]))
        for attribute in HEAD_COUNTS:
            if isinstance(getattr(around, attribute, None), int):
                return int(getattr(around, attribute))
    return None
