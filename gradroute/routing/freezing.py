"""Freeze a slice of a parameter and of its optimizer state during an update, and check that it did not change."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
import torch.distributed as dist
from torch import nn, optim

from gradroute.errors import UserError

_WHOLE_ONLY = {"Adafactor", "Muon", "Rprop"}  # they mix or factor elements, or state does not start at 0


@dataclass(eq=False)
class Frozen:
    """Elements of a parameter where the weights of some groups are all 0.

    Made once for each set of groups: an update that waits for no device, and copies nothing to it, uses it again.

    Attributes: `masks`, those of the groups, on the CPU; `mask`, their intersection, broadcastable to the parameter;
    `some` and `whole`, whether it has any elements, and all; `index`, its elements, on the parameter's device.
    """

    masks: Sequence[torch.Tensor]
    mask: torch.Tensor
    some: bool
    whole: bool
    index: tuple[Any, ...]
    _held: dict[str, torch.Tensor] = field(default_factory=dict)

    def held(self, region: str, mask: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return which of these elements a region has, on a device; `mask` is the region's."""
        if region not in self._held:
            self._held[region] = (mask & self.mask).to(device)
        return self._held[region]


class FrozenSlices:
    """What was found of parameters and sets of groups, to be used again."""

    def __init__(self) -> None:
        self._found: dict[tuple[nn.Parameter, frozenset[int]], Frozen] = {}

    def by(self, parameter: nn.Parameter, masks: Sequence[torch.Tensor]) -> Frozen:
        """Return the elements of a parameter in all of these bool masks, on the CPU, broadcastable to it."""
        key = (parameter, frozenset(map(id, masks)))  # what is found holds the masks, so that no id is taken again
        if key not in self._found:
            self._found[key] = _frozen(masks, parameter)
        return self._found[key]

    def clear(self) -> None:
        """Forget everything: the groups' weights have changed."""
        self._found.clear()


def _frozen(masks: Sequence[torch.Tensor], parameter: nn.Parameter) -> Frozen:
    mask = reduce(torch.logical_and, masks)
    wide = [axis for axis, size in enumerate(mask.shape) if size > 1]
    if len(wide) == 1:  # one index per row is enough
        index: tuple[Any, ...] = (*[slice(None)] * wide[0], mask.flatten().nonzero().flatten().to(parameter.device))
    else:
        index = tuple(axis.to(parameter.device) for axis in mask.expand(parameter.shape).nonzero(as_tuple=True))
    return Frozen(masks, mask, bool(mask.any()), bool(mask.all()), index)


def _state(optimizer: optim.Optimizer, parameter: nn.Parameter, name: str) -> dict[str, torch.Tensor]:
    """Return state tensors of the parameter's shape. Raises: UserError if the optimizer's state cannot be sliced."""
    state = optimizer.state.get(parameter, {})
    alike = {key: value for key, value in state.items() if getattr(value, "shape", None) == parameter.shape}
    rest = [value for key, value in state.items() if key not in alike]
    odd = [v for v in rest if isinstance(v, list) or (isinstance(v, torch.Tensor) and v.numel() > 1)]
    if odd or _WHOLE_ONLY & {base.__name__ for base in type(optimizer).__mro__}:
        fault = f"{type(optimizer).__name__} cannot freeze a slice of '{name}', its state is not elementwise"
        raise UserError(f"updating: {fault}; route whole parameters, or use SGD, RMSprop, Adam or AdamW")
    return alike


@contextmanager
def still(optimizer: optim.Optimizer, parameter: nn.Parameter, name: str, frozen: Frozen) -> Iterator[None]:
    """Restore the frozen slice of a parameter and its state after a step; set newly created state to 0 there."""
    index = frozen.index
    before = {key: value[index].clone() for key, value in _state(optimizer, parameter, name).items()}
    values = parameter.detach()[index].clone()
    try:
        yield
    finally:
        with torch.no_grad():
            parameter[index] = values
            for key, value in _state(optimizer, parameter, name).items():
                value[index] = before.get(key, 0)


def refuse_closure(optimizer: optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuse, as a step hook, an optimizer that calls the loss itself: its groups are unknown. Raises: UserError."""
    if isinstance(optimizer, optim.LBFGS) or kwargs.get("closure") is not None or any(map(callable, args[1:])):
        raise UserError(f"updating: {type(optimizer).__name__} steps by a closure; use SGD or Adam(W) and plain step()")


def refuse_processes() -> None:
    """Refuse several processes: they would freeze different slices and drift apart. Raises: UserError."""
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise UserError("updating: parameter routes work in one process only; use one, or route activations")


@contextmanager
def shift(
    optimizer: optim.Optimizer,
    parameter: nn.Parameter,
    frozen: Frozen,
    regions: Mapping[str, torch.Tensor],
    largest: dict[str, torch.Tensor],
) -> Iterator[None]:
    """Compare frozen slices before and after an update, independently of the code that freezes them.

    Args:
        frozen: what must not change in the parameter and in its state.
        regions: each region's mask of the parameter.
        largest: filled with each region's largest change of a frozen element, `()` float64 on the parameter's device;
            newly created state counts from 0.
    """

    def values() -> dict[str, torch.Tensor]:
        state = {"": parameter.detach(), **optimizer.state.get(parameter, {})}
        return {k: v.clone() for k, v in state.items() if getattr(v, "shape", None) == parameter.shape}

    before = values()
    yield
    for key, after in values().items():
        change = (after - before.get(key, torch.zeros_like(after))).abs()
        for name, mask in regions.items():
            most = change.masked_fill(~frozen.held(name, mask, change.device), 0).max().double()
            largest[name] = torch.maximum(largest[name], most) if name in largest else most
