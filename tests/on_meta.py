"""Move a training that stands on the CPU to torch's meta device, where nothing can be read, and back."""

import gc
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import nn

META = torch.device("meta")
PLAIN = (str, bytes, int, float, complex, bool, type(None), type, ModuleType, torch.device, torch.dtype)


def tensors(roots: Iterable[Any], without: Iterable[int] = ()) -> list[torch.Tensor]:
    """Return every tensor that can be reached from some objects, through closures too, but not through modules."""
    seen, found, todo = set(without), list[torch.Tensor](), list(roots)
    while todo:
        one = todo.pop()
        if id(one) in seen or isinstance(one, PLAIN):
            continue
        seen.add(id(one))
        if isinstance(one, torch.Tensor):
            found.append(one)
        elif isinstance(one, MethodType):
            todo += [one.__self__, one.__func__]
        elif isinstance(one, FunctionType):
            cells = [cell.cell_contents for cell in one.__closure__ or () if cell != type(cell)()]
            todo += [*cells, *(one.__defaults__ or ()), *(one.__kwdefaults__ or {}).values()]
        else:
            todo += gc.get_referents(one)
    return found


def _twin(tensor: torch.Tensor) -> torch.Tensor:
    empty = torch.empty_like(tensor.detach(), device=META)
    return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty


@contextmanager
def on_meta(roots: Iterable[Any], host: Iterable[Any]) -> Iterator[None]:
    """Hold what can be reached from `roots` on the meta device inside the block, except what `host` can reach."""
    kept = {id(tensor) for tensor in tensors(host)}
    pairs = []
    for tensor in tensors(roots, kept):
        tensor.grad = None
        pairs.append((tensor, _twin(tensor)))
    for pair in pairs:  # torch.utils.swap_tensors refuses tensors that have views
        torch._C._swap_tensor_impl(*pair)
    try:
        yield
    finally:
        for tensor, twin in pairs:
            tensor.grad = None
            torch._C._swap_tensor_impl(tensor, twin)
