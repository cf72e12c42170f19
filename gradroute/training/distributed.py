"""Train one run in several processes, as torchrun starts them: rank 0 leads and writes, the others help.

Each process takes its share of a batch's parts. Gradients and terms are summed over processes, so that all make the
update that a single process would make.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing import Monitor
from gradroute.training import signals

TIMEOUT = timedelta(minutes=30)  # of a wait for the other processes: the leading one also reads data and evaluates
LOST = re.compile(r"timed? ?out|connection (closed|reset|refused)", re.IGNORECASE)


def size() -> int:
    """Return the number of processes that train together."""
    launched = dist.is_available() and dist.is_torchelastic_launched()
    return dist.get_world_size() if launched and dist.is_initialized() else 1


def rank() -> int:
    """Return the rank of this process; 0 leads."""
    return dist.get_rank() if size() > 1 else 0


def local() -> int:
    """Return the rank of this process on its machine."""
    launched = size() > 1 or (dist.is_available() and dist.is_torchelastic_launched())
    return int(os.environ["LOCAL_RANK"]) if launched else 0


def card() -> int:
    """Return the number of this process's GPU; processes share them if there are too few."""
    return local() % max(1, torch.cuda.device_count())


def backend(processes: int, cards: int) -> str:
    """Return the backends for so many processes and GPUs of one machine: NCCL needs a GPU for each process."""
    return "cpu:gloo,cuda:nccl" if 0 < processes <= cards else "gloo"


def joining(processes: int, cards: int) -> str:
    """Return in one line how so many processes on a machine with so many GPUs train together."""
    minutes = f"a process that does not answer for {TIMEOUT.total_seconds() / 60:g} minutes ends the run"
    if 0 < cards < processes:
        shared = f"{processes} processes share {cards} GPU{'s' * (cards > 1)} and exchange gradients through the CPU"
        return f"torchrun: {shared}, which is slower than {cards}; {minutes}"
    return f"torchrun: {processes} processes train one run together; {minutes}"


def lost(error: BaseException) -> bool:
    """Return whether an error says that another process is gone, or did not answer within `TIMEOUT`."""
    return size() > 1 and isinstance(error, RuntimeError) and LOST.search(str(error)) is not None


def require_one(configs: Sequence[Config], indivisible: str | None) -> None:
    """Raise UserError unless `configs` is one run that several processes can train.

    indivisible: what needs the whole batch at once in this run, or None.
    """
    if len(configs) != 1:
        fault = f"{len(configs)} runs were requested, but its processes train one run together"
        raise UserError(f"torchrun: {fault}; run without torchrun, or without seeds= and -m")
    regions = configs[0].routing.regions
    if owned := [name for name, region in regions.items() if region.has_parameters]:
        raise UserError(f"routing.regions.{owned[0]}: parameters are frozen in one process only; run without torchrun")
    if indivisible:
        raise UserError(f"torchrun: {indivisible} needs the whole batch in one process; run without torchrun")


@contextmanager
def joined() -> Iterator[None]:
    """Join the process group inside the block, if torchrun started this process."""
    started = dist.is_available() and dist.is_torchelastic_launched() and int(os.environ["WORLD_SIZE"]) > 1
    if not started or dist.is_initialized():
        yield
        return
    cards = torch.cuda.device_count()
    if cards:
        torch.cuda.set_device(card())
    here = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    dist.init_process_group(backend(here, cards), timeout=TIMEOUT)
    _Now.told, _Now.through_cpu = False, backend(here, cards) == "gloo"
    if rank() == 0:
        print(joining(here, cards))
    try:
        yield
        if rank() == 0 and not _Now.told:
            tell(None)
    finally:
        dist.destroy_process_group()


class _Now:
    """Whether the helping processes were told what to train, and whether updates are made together.

    through_cpu: whether gradients are summed there, since NCCL would need a GPU for each process.
    """

    told: bool = False
    through_cpu: bool = False
    sharing: bool = False


def tell(what: Mapping[str, Any] | None) -> None:
    """Tell the helping processes what to train; None means nothing."""
    if size() > 1:
        _Now.told = True
        dist.broadcast_object_list([what])


def hear() -> Mapping[str, Any] | None:
    """Wait for what the leading process tells, and return it."""
    told: list[Mapping[str, Any] | None] = [None]
    dist.broadcast_object_list(told)
    return told[0]


@contextmanager
def in_step() -> Iterator[None]:
    """Make updates together inside the block: a signal to one process ends all of them after the same update."""
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
    """Return this process's share of an update and the number of shares; (0, 1), all of it, outside of `in_step`."""
    return (rank(), size()) if _Now.sharing else (0, 1)


def _flags(flags: Sequence[int]) -> list[int]:
    """Return the greatest value of each flag in any process; on the CPU, so that no device has to wait."""
    given = torch.tensor(flags)
    dist.all_reduce(given, dist.ReduceOp.MAX)
    return given.tolist()


def _sum(tensor: torch.Tensor) -> None:
    """Sum a tensor over all processes, in place."""
    there = tensor.cpu() if _Now.through_cpu else tensor
    dist.all_reduce(there)
    tensor.copy_(there)


def add_up(parameters: Sequence[nn.Parameter], numbers: torch.Tensor) -> torch.Tensor:
    """Sum gradients and `numbers` in place over all processes, and return `numbers`."""
    signal, *came = _flags([signals.number(), *(int(p.grad is not None) for p in parameters)])
    signals.agree(signal)
    own = [p for p, some in zip(parameters, came, strict=True) if some]
    gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    _sum(flat)
    for parameter, gradient, total in zip(own, gradients, flat.split([p.numel() for p in own]), strict=True):
        parameter.grad = gradient.copy_(total.view_as(gradient))  # in place: keeps the parameter's memory layout
    _sum(numbers)
    return numbers


@contextmanager
def watching(monitor: Monitor | None, device: torch.device) -> Iterator[None]:
    """Sum what the monitors of all processes see inside the block; for use within `in_step`."""
    if monitor is None or not monitor.regions or not _Now.sharing:
        yield
        return
    before = monitor.take(device)
    yield
    seen = monitor.take(device)
    _sum(seen)
    monitor.put(before + seen)
