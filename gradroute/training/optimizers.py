"""torch's fused optimizers, made without importing torch's compiler."""

import inspect
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import nn

from gradroute.config.schema import TrainerConfig

KINDS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}


@cache
def uncompiled(kind: type[torch.optim.Optimizer]) -> type[torch.optim.Optimizer]:
    """Return a subclass of an optimizer that does the same and does not import torch's compiler.

    torch wraps these three methods so that code which is being compiled passes over them, and the wrappers import the
    compiler at their first call: 1.5 s of every run. A method that a version of torch does not wrap is taken as it is.
    """
    methods = {
        "add_param_group": inspect.unwrap(kind.add_param_group),
        "zero_grad": inspect.unwrap(kind.zero_grad),
        "step": torch.no_grad()(inspect.unwrap(kind.step)),
    }
    return type(kind.__name__, (kind,), methods)


def make_optimizer(groups: Sequence[list[nn.Parameter]], trainers: Sequence[TrainerConfig]) -> torch.optim.Optimizer:
    """Return the optimizer that the configurations name, fused, with a parameter group for each."""
    name = trainers[0].optimizer
    settings: list[dict[str, Any]] = [
        {"params": group, "lr": t.lr, "weight_decay": t.weight_decay}
        | ({"momentum": t.momentum} if name == "sgd" else {"betas": (t.betas[0], t.betas[1])})
        for group, t in zip(groups, trainers, strict=True)
    ]
    if groups[0][0].device.type == "cuda":  # a captured update reads the rate where it was put
        for own in settings:
            own["lr"] = torch.tensor(own["lr"], device=groups[0][0].device)
            if name != "sgd":
                own["capturable"] = True
    return uncompiled(KINDS[name])(settings, fused=True)  # type: ignore[call-arg] # every kind takes `fused`


@contextmanager
def compilable(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let the optimizer's step be compiled inside the block: by operations on lists of tensors, with rates as tensors.

    Its state stays what the fused step makes.
    """
    settings = ("fused", "foreach", "capturable", "lr")
    kept: list[dict[str, Any]] = [{k: group[k] for k in settings if k in group} for group in optimizer.param_groups]
    for group, own in zip(optimizer.param_groups, kept, strict=True):
        rate = torch.as_tensor(group["lr"], device=group["params"][0].device)
        group.update(fused=False, foreach=True, lr=rate)
        group.update(dict.fromkeys(own.keys() & {"capturable"}, True))
    try:
        yield
    finally:
        for group, own in zip(optimizer.param_groups, kept, strict=True):
            group.update(own)


def set_rates(optimizer: torch.optim.Optimizer, rates: Iterable[float]) -> None:
    """Set the learning rates of the next update, one for each parameter group."""
    for group, rate in zip(optimizer.param_groups, rates, strict=False):
        if isinstance(group["lr"], torch.Tensor):
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate
