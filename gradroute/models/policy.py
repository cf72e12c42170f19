"""Policies of experts, mixed by a gate, with a baseline of the value (GR App. F)."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated

import torch
from torch import nn

from gradroute.config.limits import WIDTH, Between, Items

BASELINE = (16, 256, 32)  # planes and hidden units of the value's baseline


class Planes(nn.Linear):
    """A 1 × 1 convolution of planes `(n, planes, …)`, as a linear map, flattened to `(n, planes * squares)`."""

    def forward(self, planes: torch.Tensor) -> torch.Tensor:
        """Return the mixed planes, flattened."""
        return super().forward(planes.reshape(*planes.shape[:2], -1).transpose(1, 2)).transpose(1, 2).flatten(1)


class LinearValue(nn.Module):
    """A baseline of a 1 × 1 convolution and three linear layers without activations between them.

    The layers are multiplied with each other rather than with the observations: that is the same map, and the work for
    an observation is that of one layer.
    """

    def __init__(self, planes: int, squares: int) -> None:
        super().__init__()
        wide, *hidden = BASELINE
        self.planes = nn.Linear(planes, wide)
        self.layers = nn.ModuleList(nn.Linear(*sizes) for sizes in pairwise([wide * squares, *hidden, 1]))

    def forward(self, observations: torch.Tensor) -> torch.Tensor:
        """Return the values `(n, 1)` of observations `(n, planes, …)`."""
        weight = torch.ones(1, 1, dtype=observations.dtype, device=observations.device)
        bias = torch.zeros(1, dtype=observations.dtype, device=observations.device)
        for layer in reversed(self.layers):
            assert isinstance(layer, nn.Linear)
            weight, bias = weight @ layer.weight, bias + weight @ layer.bias
        by_plane = weight.reshape(self.planes.out_features, -1)
        bias = bias + (self.planes.bias @ by_plane).sum()
        return observations.flatten(1) @ (self.planes.weight.T @ by_plane).reshape(-1, 1) + bias


def layers(widths: Sequence[int], last: bool = False) -> list[nn.Module]:
    """Return linear layers with ReLU between them and, if `last`, after them."""
    found: list[nn.Module] = []
    for place, (inputs, outputs) in enumerate(pairwise(widths)):
        found.append(nn.Linear(inputs, outputs))
        if last or place < len(widths) - 2:
            found.append(nn.ReLU())
    return found


class Policy(nn.Module):
    """A policy of one expert, or of two whose outputs a gate mixes, and a baseline of the value.

    Sites are `experts.NAME`, after the last ReLU, and `gate`, before its sigmoid g: the experts' outputs are mixed as
    g * first + (1 - g) * second. All biases begin at 0. The baseline is linear: its layers have no activations.

    Args:
        shape, actions: of the environment. experts: their names. hidden: units of their layers.
        gate: whether there is a gate; without one, two experts are mixed equally.
    """

    stackable = True
    task = "reinforcement"

    def __init__(
        self, shape: Sequence[int], actions: int, experts: Annotated[list[str], Items(1, 2, each_once=True)],
        hidden: Annotated[int, Between(1, WIDTH)] = 256, gate: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        planes, squares = shape[0], 1
        for side in shape[1:]:
            squares *= side
        inputs = planes * squares
        one = lambda: nn.Sequential(nn.Flatten(), *layers([inputs, hidden, hidden], last=True))  # noqa: E731
        self.experts = nn.ModuleDict({name: one() for name in experts})
        self.output = nn.Linear(hidden, actions)
        self.gate: nn.Module | None = None
        if gate and len(experts) == 2:
            self.gate = nn.Sequential(Planes(planes, planes), *layers([inputs, hidden, hidden, 1]))
        self.value = LinearValue(planes, squares)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)

    def logits(self, observations: torch.Tensor, serve: str | None = None) -> torch.Tensor:
        """Return the logits of the actions, `(n, actions)`; `serve` names an expert that acts alone."""
        if serve is not None:
            mixed: torch.Tensor = self.experts[serve](observations)
        else:
            outputs = [expert(observations) for expert in self.experts.values()]
            mixed = outputs[0] if len(outputs) == 1 else self._mixed(observations, *outputs)
        found: torch.Tensor = self.output(mixed)
        return found

    def _mixed(self, observations: torch.Tensor, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        if self.gate is None:
            return (first + second) / 2
        share = self.gate(observations).sigmoid()
        mixed: torch.Tensor = second + share * (first - second)
        return mixed

    def forward(self, observations: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits `(n, actions)` and the values `(n,)` of observations `(n, *shape)`."""
        return self.logits(observations), self.value(observations).squeeze(-1)
