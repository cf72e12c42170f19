"""Compute what depends on logits a few positions at a time, so that a row's logits are never held all at once.

A row of 4,096 tokens has 4 GiB of logits over a vocabulary of 256,000, and three times that with their gradients.
"""

from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

LOGITS = 2**26  # computed at once, at most: 256 MiB in float32


class Divided(nn.Module):
    """Base class of language models whose logits are those of each position's features alone."""

    @property
    @abstractmethod
    def unembedding(self) -> torch.Tensor:
        """The matrix that maps to logits, `(vocabulary, width)`."""

    @abstractmethod
    def features(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the output layer reads, `(batch, length, width)`; see `forward`."""

    @abstractmethod
    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, `(…, width)` to `(…, vocabulary)`."""

    def forward(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `(batch, length, vocabulary)` of the token after each of `tokens`, `(batch, length)` int64.

        Args:
            document_ids: `(batch, length)`; a run of equal numbers is one document: positions restart in each, and none
                sees another. None: each row is one document.

        Raises: UserError if a row is longer than the context.
        """
        return self.logits(self.features(tokens, document_ids))


def body(model: nn.Module) -> Callable[..., torch.Tensor]:
    """Return what to call where the model's sites are needed and its logits are not."""
    return model.features if isinstance(model, Divided) else model


def at_once(model: nn.Module, length: int) -> int | None:
    """Return how many positions to compute at once; None for a whole row, if its logits are few or all that there is.

    Small models take whole rows: pieces cost one more product with the output matrix.
    """
    vocabulary = len(getattr(model, "unembedding", ()))
    if not isinstance(model, Divided) or length * vocabulary <= LOGITS:
        return None
    return max(1, LOGITS // vocabulary)


def source(model: nn.Module, count: int | None) -> Callable[..., torch.Tensor]:
    """Return what to call for the `output` of `each_position`: the model, or its part before the output layer."""
    return model if count is None else body(model)


def each_position(
    model: nn.Module, output: torch.Tensor, targets: torch.Tensor,
    value: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], count: int | None,
) -> torch.Tensor:  # fmt: skip
    """Return `value(logits, targets)` at every position, `(positions, …)`, from `count` positions' logits at once.

    For the backward pass the logits of each piece are computed again. (PyTorch's own `linear_cross_entropy` is newer
    than the oldest version that is supported, knows no other losses, and took 8 to 16 times as long on a CPU.)

    Args:
        output: what `source` returned for rows of tokens, `(batch, length, …)`: features, or logits if `count` is None.
        targets: what `value` needs of each position, `(batch, length, …)`.
        count: see `at_once`.
    """
    output, targets = output.flatten(0, 1), targets.flatten(0, 1)
    if count is None:
        return value(output, targets)
    divided = cast(Divided, model)

    def piece(features: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return value(divided.logits(features), targets)

    pairs = zip(output.split(count), targets.split(count), strict=True)
    found = [checkpoint(piece, *pair, use_reentrant=False, preserve_rng_state=False) for pair in pairs]
    return torch.cat(found)
