"""Read modules' weights from safetensors files; names, shapes and types are checked before anything is loaded."""

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from gradroute.errors import UserError, plain_text
from gradroute.records.safe_reading import open_plain, place

WEIGHTS = "model.safetensors"  # of a finished run
TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}  # fmt: skip


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return the module's tensors by name; tied parameters under one name only, as a file has each once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a SHA-256 of tensors: of their names, types, shapes and bytes."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.flatten().view(torch.uint8).numpy().data)
    return found.hexdigest()


def write_weights(path: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    """Write a safetensors file from the tensors themselves; its bytes in memory would double them. Raises: OSError."""
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        if number := re.search(r"os error (\d+)", str(error)):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from None
        raise
    path.chmod(0o644)


def _compare(file: safe_open, modules: Mapping[str, nn.Module]) -> None:
    """Raise ValueError for a tensor that is missing, belongs to no module, or has another shape or type."""
    found = set(file.keys())
    for prefix, module in modules.items():
        wanted = {f"{prefix}.{key}": tensor for key, tensor in own_tensors(module).items()}
        if odd := {key for key in found if key.startswith(f"{prefix}.")} ^ wanted.keys():
            raise ValueError(f"{min(odd)} is {'missing' if min(odd) in wanted else 'not part of the module'}")
        for key, tensor in wanted.items():
            slice_, kind = file.get_slice(key), TYPES.get(tensor.dtype)
            if slice_.get_shape() != list(tensor.shape) or slice_.get_dtype() != kind:
                is_ = f"{slice_.get_dtype()} of shape {slice_.get_shape()}"
                raise ValueError(f"{key} is {is_}, not {kind} of shape {list(tensor.shape)}")


def read_weights(run: Path, modules: Mapping[str, nn.Module], load: bool = True, name: str = WEIGHTS) -> None:
    """Load weights of a run folder into modules by their prefix, after checking that every shape fits.

    With `load=False`, compare names, shapes and types only and read no tensor; modules may be on the meta device.
    Raises: UserError if they do not fit.
    """
    path = place(run, name)
    open_plain(path).close()
    try:
        with safe_open(path, "pt") as file:
            _compare(file, modules)
            for prefix, module in modules.items() if load else ():
                own = {name: file.get_tensor(f"{prefix}.{name}") for name in own_tensors(module)}
                module.load_state_dict(own, strict=False)  # names were compared; of tied parameters, the file has one
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError, MemoryError) as error:
        reason = plain_text(str(error).splitlines()[0])
        raise UserError(f"{run}: the weights do not fit the run's configuration ({reason})") from None
