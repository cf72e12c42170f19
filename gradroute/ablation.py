"""Ablations: replace a region's activations by a constant, from outside, and undo it."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.routing import Region


@dataclass(frozen=True)
class Ablation:
    """`values` `(units,)` replace the activations of the region called `name`."""

    name: str
    region: Region
    values: torch.Tensor

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Ablate the forward passes made inside; the model is as before afterwards."""

        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            ablated = output.clone()
            ablated[..., list(self.region.units)] = self.values.to(output.dtype)
            return ablated

        handle = model.get_submodule(self.region.site).register_forward_hook(hook)
        try:
            yield
        finally:
            handle.remove()
