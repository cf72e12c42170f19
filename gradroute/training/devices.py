"""Choose the device and the precision to compute with."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import locks
from gradroute.training import determinism, distributed


def pick_device(name: str) -> torch.device:
    """Return the device that `trainer.device` names; `auto` is a GPU if there is one. Raises: UserError.

    Each of several processes gets the GPU of its local rank; they share GPUs if there are too few.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{distributed.card()}"
    try:
        if name.startswith("cuda"):
            determinism.prepare()
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device={name}: cannot be used here ({reason}); use auto, cpu or cuda:N") from None


def pick_precision(name: str, device: torch.device) -> str:
    """Return the precision that `trainer.precision` names: `float32`, `tf32` or `bfloat16`.

    `auto` is bfloat16 if the processor or GPU supports it natively, else float32.
    Raises: UserError for tf32 on a device without it.
    """
    if name == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise UserError(f"trainer.precision=tf32: {device} does not support it; use an NVIDIA GPU from Ampere on, or "
                        "float32 or bfloat16")  # fmt: skip
    if name != "auto":
        return name
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return "bfloat16" if native else "float32"


def settle_precision(config: Config) -> torch.device:
    """Return the device to train on, and replace precision `auto` in the configuration. Raises: UserError."""
    device = pick_device(config.trainer.device)
    config.trainer.precision = pick_precision(config.trainer.precision, device)
    return device


@contextmanager
def computing(precision: str, device: torch.device) -> Iterator[None]:
    """Compute in a precision inside the block: by autocast to bfloat16, or with TF32 in matrix products."""
    before = torch.get_float32_matmul_precision()
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16"):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


_OWN: list[int] = []  # file descriptor that holds the lock of this process's GPU


def own_gpu(sweep: Path) -> None:
    """If there are several GPUs, reserve one that no other process of the sweep on this machine has, if one is free.

    sweep: a folder that these processes share. Call this before CUDA is used. It does nothing under a scheduler that
    shows each process only its own GPU.
    """
    count = torch.cuda.device_count()
    if count < 2 or _OWN:
        return
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    visible = named.split(",") if named else [str(number) for number in range(count)]
    for place in visible:
        folder = sweep / f"{socket.gethostname()}_gpu_{place}"
        folder.mkdir(parents=True, exist_ok=True)
        try:
            taken = locks.take(folder)
        except UserError:
            continue
        os.environ["CUDA_VISIBLE_DEVICES"] = place
        _OWN.append(-1 if taken is None else taken)
        return
    os.environ["CUDA_VISIBLE_DEVICES"] = visible[os.getpid() % len(visible)]
    _OWN.append(-1)
