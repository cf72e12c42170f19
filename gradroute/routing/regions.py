"""Regions are units at a site of the model; groups are named parts of the data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError, unknown


@dataclass(frozen=True)
class Region:
    """Units on the last axis of the output of the module named `site`."""

    site: str
    units: tuple[int, ...]

    def select(self, activations: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The region's part of its site's activation, `(batch, …, units)`; a view where the units are a range."""
        first, count = self.units[0], len(self.units)
        activation = activations[self.site]
        if self.units == tuple(range(first, first + count)):
            return activation[..., first : first + count]
        return activation[..., list(self.units)]


def parse_units(spec: object, where: str) -> tuple[int, ...]:
    """Unit numbers of `"start:stop"`, `"start:stop:step"` or a list, ascending.

    Raises: UserError naming `where` if the specification cannot be read, is empty, repeats a unit or is negative.
    """
    right = 'a range in quotes like "0:16" or a list like [0,3,5]'
    if isinstance(spec, int):
        raise UserError(
            f"{where}={spec}: a bare number is no range (YAML reads an unquoted 16:32 as 992); give {right}"
        )
    try:
        if isinstance(spec, str):
            parts = [int(part) for part in spec.split(":")]
            if len(parts) not in (2, 3) or min(parts) < 0:
                raise ValueError
            units: list[int] = list(range(*parts))
        elif isinstance(spec, Sequence):
            units = [int(u) for u in spec]
        else:
            raise TypeError
    except (TypeError, ValueError):
        raise UserError(f"{where}={spec}: cannot be read as units; give {right}") from None
    if not units:
        raise UserError(f"{where}={spec}: the region is empty; give {right}")
    if min(units) < 0 or len(set(units)) < len(units):
        raise UserError(f"{where}={spec}: units must be 0 or more, each named once")
    return tuple(sorted(units))


def site_widths(model: nn.Module, regions: Mapping[str, Region], example: torch.Tensor) -> dict[str, int]:
    """Width of every region's site, found by one forward pass of `example`; checks each region against it.

    Raises: UserError for a site that is not a module of the model or is not reached, and for units outside it.
    """
    modules = dict(model.named_modules())
    shapes: dict[str, torch.Size] = {}

    def note(site: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, torch.Tensor):
                raise UserError(f"site '{site}': its output is a {type(output).__name__}, not a tensor")
            shapes[site] = output.shape

        return hook

    handles = []
    for name, region in regions.items():
        if region.site not in modules or not region.site:
            raise unknown(f"site of region '{name}':", region.site, [m for m in modules if m])
        handles.append(modules[region.site].register_forward_hook(note(region.site)))
    try:
        with torch.no_grad():
            model(example)
    finally:
        for handle in handles:
            handle.remove()
    for name, region in regions.items():
        if region.site not in shapes:
            raise UserError(f"site '{region.site}' of region '{name}' is not reached in the forward pass")
        width = shapes[region.site][-1]
        if region.units[-1] >= width:
            raise UserError(
                f"region '{name}': unit {region.units[-1]} is outside site '{region.site}' of shape "
                f"{tuple(shapes[region.site])}; units go from 0 to {width - 1}"
            )
    return {site: shape[-1] for site, shape in shapes.items()}


class Groups:
    """Named, disjoint label sets; index `len(names) - 1` may be `unassigned`, for labels in no set."""

    def __init__(self, labels: Mapping[str, Sequence[int]], present: Sequence[int], unassigned: str = "error") -> None:
        self.names = list(labels)
        table = {label: i for i, name in enumerate(self.names) for label in labels[name]}
        for label, i in table.items():
            if label not in present:
                raise unknown(f"label in routing.groups.{self.names[i]}.labels:", label, present)
        missing = [label for label in present if label not in table]
        if missing and unassigned == "error":
            raise UserError(
                f"routing.groups: labels {missing} are in no group; add them to one, or set "
                "routing.unassigned=unrouted to train on them with every weight 1"
            )
        if missing:
            table |= {label: len(self.names) for label in missing}
            self.names.append("unassigned")
        self._lookup = torch.full((max(present) + 1,), -1, dtype=torch.long)
        for label, i in table.items():
            self._lookup[label] = i

    def index(self, labels: torch.Tensor) -> torch.Tensor:
        """Group number of each label: `(n,)` int64 to `(n,)` int64."""
        return self._lookup.to(labels.device)[labels]
