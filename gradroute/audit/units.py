"""Small modules of an audit: a model with a bias on its outputs, and the state of a model that attacks change."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gradroute.training.weights import own_tensors


class Biased(nn.Module):
    """A model whose outputs get one bias each, `(outputs,)`; only the bias is trained."""

    def __init__(self, model: nn.Module, outputs: int) -> None:
        super().__init__()
        self.model, self.bias = model, nn.Parameter(torch.zeros(outputs))

    @property
    def unembedding(self) -> torch.Tensor | tuple[()]:
        """The model's own output matrix, by whose size rows are passed together."""
        found: torch.Tensor | tuple[()] = getattr(self.model, "unembedding", ())
        return found

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Return the model's outputs with the bias; the model gets no gradient."""
        with torch.no_grad():
            outputs = self.model(*inputs)
        biased: torch.Tensor = outputs.float() + self.bias
        return biased


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Restore a model's parameters and buffers, to the bit, at the end of the block."""
    kept = {name: tensor.clone() for name, tensor in own_tensors(model).items()}
    try:
        yield
    finally:
        own = own_tensors(model)
        with torch.no_grad():
            for name, before in kept.items():
                own[name].copy_(before)
