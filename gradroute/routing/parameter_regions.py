"""Regions of parameters: which parameters, or slices of them, a region has."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing.regions import matching, parse_units


@dataclass(frozen=True)
class ParameterRegion:
    """Parameters, or slices of them along one axis; where several patterns match, their units are united.

    parameters: glob over their names to units, as `parse_units` reads them; None is all.
    outside: what is left out of them: a parameter's name, to units on an axis of it.
    """

    parameters: Mapping[str, object]
    axis: int = 0
    outside: Mapping[str, tuple[int, Sequence[int]]] = field(default_factory=dict)


def _mask(parameter: nn.Parameter, spec: object, axis: int, where: str) -> torch.Tensor:
    """Return the slice as a bool mask on the CPU, with the parameter's number of axes, of size 1 where not sliced."""
    if not parameter.requires_grad:
        raise UserError(f"{where}: it has requires_grad=False and cannot be routed; set it, or narrow the pattern")
    shape = [1] * parameter.dim()
    if spec is not None:
        if not -len(shape) <= axis < len(shape):
            raise UserError(f"{where}: shape {tuple(parameter.shape)} has no axis {axis} to slice; give another")
        shape[axis] = parameter.shape[axis]
    mask = torch.zeros(math.prod(shape), dtype=torch.bool)
    mask[list(parse_units(spec, len(mask), where))] = True
    return mask.view(shape)


def found_in(model: nn.Module, region_name: str, region: ParameterRegion) -> dict[str, torch.Tensor]:
    """Return the masks of a region by the parameters' names, on the CPU; see `ParameterRouter`. Raises: UserError."""
    masks: dict[nn.Parameter, torch.Tensor] = {}
    names: dict[nn.Parameter, str] = {}
    named = dict(model.named_parameters(remove_duplicate=False))
    for pattern, spec in region.parameters.items():
        for name in matching(pattern, list(named), f"parameter of region '{region_name}':"):
            where = f"region '{region_name}', parameter '{name}'"
            mask = _mask(named[name], spec, region.axis, where)
            if name in region.outside:
                axis, units = region.outside[name]
                mask = mask & ~_mask(named[name], list(units), axis, where)
            masks[named[name]] = mask | masks[named[name]] if named[name] in masks else mask
            names[named[name]] = name
    if not masks:
        raise UserError(f"region '{region_name}' names no parameters; give at least one pattern")
    return {names[parameter]: mask for parameter, mask in masks.items()}


def weight_table(
    regions: Mapping[str, Mapping[nn.Parameter, torch.Tensor]], weights: Sequence[float]
) -> dict[nn.Parameter, torch.Tensor]:
    """Return the product of the regions' weights at every element; a parameter with all weights 1 is left out.

    Args:
        regions: each region's masks. weights: one for each region.
    """
    table: dict[nn.Parameter, torch.Tensor] = {}
    for masks, weight in zip(regions.values(), weights, strict=True):
        for parameter, mask in masks.items():
            precision = torch.promote_types(parameter.dtype, torch.float32)
            factor = torch.ones(mask.shape, dtype=precision).masked_fill(mask, weight)
            table[parameter] = factor * table.get(parameter, 1)
    return {parameter: weight for parameter, weight in table.items() if bool((weight != 1).any())}


def norm_in(
    masks: Mapping[nn.Parameter, torch.Tensor],
    gradients: Mapping[nn.Parameter, torch.Tensor],
    outside: dict[nn.Parameter, torch.Tensor],
) -> torch.Tensor:
    """Return the L2 norm of gradients in a region with these masks, `()` float64.

    outside: filled with the masks of what is not in the region, on the device of the gradients, for the next call.
    """
    norms = []
    for parameter, gradient in gradients.items():
        if parameter in masks:
            if parameter not in outside or outside[parameter].device != gradient.device:
                outside[parameter] = ~masks[parameter].to(gradient.device)
            norms.append(gradient.masked_fill(outside[parameter], 0).norm().double())
    return torch.stack(norms).norm() if norms else torch.zeros((), dtype=torch.float64)
