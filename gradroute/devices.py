"""Where and in which precision to compute."""

import torch

from gradroute.errors import UserError


def pick_device(name: str) -> torch.device:
    """The device that `trainer.device` names; `auto` takes a GPU if there is one. Raises: UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device={name}: cannot be used here ({reason}); auto, cpu or cuda:N") from None


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve `trainer.precision`: `auto` is bfloat16 where the processor or GPU multiplies it natively."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return torch.bfloat16 if native else torch.float32
