"""Several processes that train one run together, as torchrun starts them: the first one leads and writes, others help.

Each takes its share of a batch's parts; what it finds is summed up, so that all make the update that one would make.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing import Monitor
from gradroute.training import signals


def size() -> int:
    """How many processes train together."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    return dist.get_world_size() if launched and dist.is_initialized() else 1


def rank() -> int:
    """Which one this is; 0 leads."""
    return dist.get_rank() if size() > 1 else 0


def local() -> int:
    """Which one this is of those on its machine, and so which GPU is its own."""
    return int(os.environ["LOCAL_RANK"]) if size() > 1 else 0


def require_one(configs: Sequence[Config], indivisible: str | None) -> None:
    """Raise UserError if these are not one run that several processes can train.

    indivisible: what takes a batch of it as a whole, if anything does.
    """
    if len(configs) != 1:
        fault = f"{len(configs)} runs are asked for, and its processes train one together"
        raise UserError(f"torchrun: {fault}; leave torchrun out, or seeds= and -m")
    regions = configs[0].routing.regions
    if owned := [name for name, region in regions.items() if region.parameters is not None]:
        raise UserError(f"routing.regions.{owned[0]}: parameters are frozen in one process only; leave torchrun out")
    if indivisible:
        raise UserError(
            f"torchrun: {indivisible} takes a batch as a whole, and processes parts of it; leave torchrun out"
        )


@contextmanager
def joined() -> Iterator[None]:
    """Inside, be one of the processes that torchrun started, if it did."""
    started = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if not started or dist.is_initialized():
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    _Now.told = False
    try:
        yield
        if rank() == 0 and not _Now.told:
            tell(None)
    finally:
        dist.destroy_process_group()


class _Now:
    """Whether the processes that help were told what to do, and whether updates are made together."""

    told: bool = False
    sharing: bool = False


def tell(what: Mapping[str, Any] | None) -> None:
    """Tell those that help what to train; None: nothing."""
    if size() > 1:
        _Now.told = True
        dist.broadcast_object_list([what])


def hear() -> Mapping[str, Any] | None:
    """Wait for what the leading process tells."""
    told: list[Mapping[str, Any] | None] = [None]
    dist.broadcast_object_list(told)
    return told[0]


@contextmanager
def in_step() -> Iterator[None]:
    """Inside, updates are made together: a signal that came to one ends all of them after the same one."""
    if size() == 1:
        yield
        return
    _Now.sharing = True
    try:
        with signals.agreed():
            yield
    finally:
        _Now.sharing = False


def share() -> tuple[int, int]:
    """Which of how many shares of an update is this process's: (0, 1), all of it, outside of `in_step`."""
    return (rank(), size()) if _Now.sharing else (0, 1)


def _flags(flags: Sequence[int]) -> list[int]:
    """The greatest value of each flag in any process; on the CPU, so that no device has to wait."""
    given = torch.tensor(flags)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return given.tolist()


def add_up(parameters: Sequence[nn.Parameter], numbers: torch.Tensor) -> torch.Tensor:
    """Sum gradients in place, and `numbers`, which are returned, over all processes."""
    signal, *came = _flags([signals.number(), *(int(p.grad is not None) for p in parameters)])
    signals.agree(signal)
    own = [p for p, some in zip(parameters, came, strict=True) if some]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(flat)
    for parameter, gradient, total in zip(own, gradients, flat.split([p.numel() for p in own]), strict=True):
        parameter.grad = gradient.copy_(total.view_as(gradient))  # in place: its order in memory is the parameter's
    dist.all_reduce(numbers)
    return numbers


@contextmanager
def watching(monitor: Monitor | None, device: torch.device) -> Iterator[None]:
    """Have every process's monitor see what all of them see inside; within `in_step` only."""
    if monitor is None or not monitor.regions or not _Now.sharing:
        yield
        return
    before = monitor.take(device)
    yield
    seen = monitor.take(device)
    dist.all_reduce(seen)
    monitor.put(before + seen)
