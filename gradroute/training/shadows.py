"""Copies of the weights in the precision of autocast, in which a training computes; the optimizer keeps the masters.

Autocast converts each weight in each pass, and each gradient back, into new memory. Shadows are converted once after an
update, and their gradients are added to float32 gradients that stay in place. Values and gradients are those of
autocast to the bit: it rounds the same weights, and takes their gradients in the same precision.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import nn

CONVERTED = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)  # autocast computes these in the lower precision


def lowered(device: torch.device) -> torch.dtype | None:
    """Return the precision that autocast converts weights to on a device, or None where it is off."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None


def convertible(module: nn.Module) -> list[str]:
    """Return the names of the float32 parameters that only linear layers and convolutions read.

    One that another kind of module shares, such as a tied embedding, is left out: autocast does not convert it there.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    users: dict[nn.Parameter, list[bool]] = {}
    for part in module.modules():
        for parameter in part.parameters(recurse=False):
            users.setdefault(parameter, []).append(type(part) in CONVERTED)
    return [names[p] for p, plain in users.items() if all(plain) and p.dtype == torch.float32]


class Shadows:
    """Lower-precision copies of parameters. Inside `used`, the parameters hold these and collect float32 gradients.

    Args:
        parameters: leaf tensors in float32; their gradients arrive in the lower precision.
        precision: that of the copies.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], precision: torch.dtype) -> None:
        self.parameters = list(parameters)
        self._copies = [torch.empty_like(parameter.data, dtype=precision) for parameter in self.parameters]
        self._gradients = [torch.empty_like(parameter.data) for parameter in self.parameters]
        self._versions: list[int] = []
        self._arrived: set[int] = set()

    @torch.no_grad()
    def refresh(self) -> None:
        """Copy the masters; call it after every change to them."""
        torch._foreach_copy_(self._copies, [parameter.data for parameter in self.parameters])
        self._versions = self._now()

    def _now(self) -> list[int]:
        return [parameter._version for parameter in self.parameters]

    @contextmanager
    def used(self) -> Iterator[None]:
        """Let the parameters hold their copies inside the block. Afterwards `.grad` is the sum over backward passes.

        That sum lies in the same memory at every update: keep a clone, not the tensor.
        """
        if self._versions != self._now():  # loaded or set by somebody else
            self.refresh()
        self._arrived.clear()
        hooks = [
            parameter.register_post_accumulate_grad_hook(self._collector(place))
            for place, parameter in enumerate(self.parameters)
            if parameter.requires_grad
        ]
        masters = [parameter.data for parameter in self.parameters]
        for parameter, copy in zip(self.parameters, self._copies, strict=True):
            parameter.data = copy
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, master in zip(self.parameters, masters, strict=True):
                parameter.data = master
        for place in self._arrived:
            self.parameters[place].grad = self._gradients[place]

    def _collector(self, place: int) -> Callable[[torch.Tensor], None]:
        total = self._gradients[place]

        def collect(parameter: torch.Tensor) -> None:
            assert parameter.grad is not None
            if place in self._arrived:
                total.add_(parameter.grad)
            else:
                total.copy_(parameter.grad)
                self._arrived.add(place)
            parameter.grad = None  # its memory serves the next gradient

        return collect
