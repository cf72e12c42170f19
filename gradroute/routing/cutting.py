"""Cut a batch by the weights of its rows, so that each set of weights needs a pass over its own rows only."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Cut:
    """A batch in pieces of rows whose groups have the same weights.

    order: row numbers `(batch,)`, those of a piece together, on the CPU. ends: where each piece ends. kinds: the kind
    of weights of each piece; None for one whose rows have groups of several kinds.
    """

    order: torch.Tensor
    ends: list[int]
    kinds: list[int | None]


def cut(present: torch.Tensor, kinds: Sequence[int], parts: int = 1) -> Cut | None:
    """Return how to cut a batch; None if every row has groups of several kinds, so that nothing is gained.

    Args:
        present: whether each row has each group, `(batch, groups)` bool, on the CPU.
        kinds: the kind of each group's weights, from 0.
        parts: of about the batch's number of rows over this number, at most, is each piece.
    """
    several = max(kinds) + 1  # the label of rows with several kinds
    own = torch.stack([present[:, [k == kind for k in kinds]].any(1) for kind in range(several)], 1)
    labels = own.int().argmax(1).masked_fill(own.sum(1) > 1, several)
    if bool((labels == several).all()):
        return None
    order, largest = labels.argsort(stable=True), -(-len(labels) // parts)
    ends, found = list[int](), list[int | None]()
    for label, count in enumerate(labels.bincount(minlength=several + 1).tolist()):
        for done in range(0, count, largest):
            ends.append((ends[-1] if ends else 0) + min(largest, count - done))
            found.append(None if label == several else label)
    return Cut(order, ends, found)
