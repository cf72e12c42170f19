"""Estimate a run's memory before any is taken, and refuse a run that cannot fit."""

import ctypes
import gc
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing.ablation import LARGE
from gradroute.routing.hooks import hooked

FLOAT = 4  # bytes
COPIES = 4  # of every parameter in training: itself, its gradient, and Adam's two moments
PART = 2**30  # bytes of one part of a batch on a CPU, where smaller parts are as fast
LARGEST_KEPT = 2**25  # bytes of one tensor; the most that glibc allows
KEPT = 2**30  # bytes that may lie unused
FILLED = 0.7  # of the free memory, by runs that are trained at once: the estimate of each is a lower bound
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory(device: torch.device) -> int:
    """Return the bytes that a process may use in all, free or not: of a GPU, or the least of the machine's limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    found = [2**63]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found += [
        int(text) for path in CGROUPS if Path(path).is_file() and (text := Path(path).read_text().strip()).isdigit()
    ]
    try:
        import resource
    except ImportError:  # not on Windows
        return min(found)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*found, *([] if limit == resource.RLIM_INFINITY else [limit])])


def keep_freed() -> None:
    """Have the C library keep freed memory for the next tensor, in this process, instead of giving it to the system.

    A tensor of megabytes would otherwise be new pages each time, which cost more than to compute what is in them. It
    does nothing with other libraries than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        mallopt(-3, LARGEST_KEPT)  # M_MMAP_THRESHOLD
        mallopt(-1, KEPT)  # M_TRIM_THRESHOLD


def runs_that_fit(each: int, device: torch.device) -> tuple[int, int]:
    """Return how many runs of `each` bytes the free memory holds, at least 1, and the free bytes."""
    free = int(torch.cuda.mem_get_info(device)[0]) if device.type == "cuda" else machine_memory(device)
    return max(1, int(FILLED * free / max(1, each))), free


def release() -> None:
    """Give back what is not used any more, after a training that was out of memory."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def part_memory(device: torch.device) -> int:
    """Return the bytes that the logits and activations of a part of a batch may take: 1 GiB, or a quarter of a GPU."""
    return machine_memory(device) // 4 if device.type == "cuda" else PART


def activation_numbers(
    model: nn.Module, *inputs: torch.Tensor, called: Callable[..., torch.Tensor] | None = None
) -> int:
    """Count the numbers in the outputs of all leaf modules, for inputs on the model's device; 0 if the pass fails.

    called: a part of the model to pass them through; None is all of it.
    """
    counted: list[int] = []

    def count(module: nn.Module, given: object, output: Any) -> None:
        if isinstance(output, torch.Tensor) and not isinstance(module, nn.Identity):
            counted.append(output.numel())

    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    try:
        with hooked(model, dict.fromkeys(leaves, count)), torch.no_grad():
            (called or model)(*inputs)
    except Exception:  # such as a model that reads values, which the meta device lacks
        return 0
    return sum(counted)


def parameter_numbers(*modules: nn.Module) -> int:
    """Count the numbers in the parameters of modules."""
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def collect_copies(*modules: nn.Module) -> None:
    """Free earlier copies of large modules: those of `transformers` are in reference cycles until collected."""
    if parameter_numbers(*modules) > LARGE:
        gc.collect()


def require_memory(
    parameters: int, batch: int, device: torch.device, model_key: str, smaller: str, batch_key: str, lower: str
) -> None:
    """Raise UserError, naming the key to lower, if parameters and batch cannot fit the machine's memory.

    Args:
        parameters, batch: bytes of the parameters, with their gradients and optimizer state, and of one batch.
        model_key, smaller: the key of the model's sizes, and what to do if they are too large.
        batch_key, lower: the same for the batch.
    """
    limit = machine_memory(device)
    if parameters + batch > limit:
        key, right = (model_key, smaller) if parameters > batch else (batch_key, lower)
        needed = f"{(parameters + batch) / 2**30:.1f} GiB are needed and the machine has {limit / 2**30:.1f}"
        raise UserError(f"{key}: {needed}; {right}")
