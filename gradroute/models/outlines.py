"""Build a module on the meta device: with shapes and types, without numbers and without a draw."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

DRAWS = {"normal_", "uniform_", "trunc_normal_", "_no_grad_normal_", "_no_grad_uniform_", "_no_grad_trunc_normal_"}
MADE = (torch.randn, torch.rand)  # these make a tensor with drawn numbers; `empty` makes the same one without
SMALL = 2**24  # parameters that may be made twice without a thought


class _Undrawn(TorchFunctionMode):
    """Leave tensors of the meta device as they are where an initialisation would draw their numbers.

    They have no numbers, and torch imports its compiler to draw none, which takes longer than a small run.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        named = dict(kwargs or {})
        if func in MADE and named.get("device") is None:
            named.pop("generator", None)
            return torch.empty(*args, **named)
        drawn = args[0] if args else named.get("tensor")
        if isinstance(drawn, Tensor) and drawn.is_meta and getattr(func, "__name__", "") in DRAWS:
            return drawn
        return func(*args, **named)


@contextmanager
def meta() -> Iterator[None]:
    """Make every tensor of the context on the meta device."""
    with torch.device("meta"), _Undrawn():
        yield


def passable(outline: nn.Module) -> nn.Module:
    """Return a model of the meta device for a pass that counts numbers: a small one on the CPU, of zeros, in place.

    A pass on the meta device imports torch's compiler, too.
    """
    tensors = [*outline.parameters(), *outline.buffers()]
    if sum(tensor.numel() for tensor in tensors) > SMALL or not all(tensor.is_meta for tensor in tensors):
        return outline
    outline._apply(lambda tensor: torch.zeros(tensor.shape, dtype=tensor.dtype))  # not to_empty: it asks the compiler
    return outline
