"""Compute a language model's losses per token, and their means over the documents of groups."""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from gradroute.data.text.corpora import Part
from gradroute.data.text.packing import IGNORED
from gradroute.models.logits import LOGITS, at_once, each_position, source
from gradroute.routing.sites import undisturbed
from gradroute.training.measures import CROSS_ENTROPY, Measure

ROWS = 64  # in one forward pass, at most


def rows_at_once(model: nn.Module, length: int) -> int:
    """Return how many rows of tokens to pass through a model without gradients."""
    vocabulary = len(getattr(model, "unembedding", ()))
    return max(1, min(ROWS, LOGITS // max(1, vocabulary * length)))


def token_values(
    model: nn.Module, part: Part, measures: Sequence[Measure], device: torch.device
) -> dict[str, torch.Tensor]:
    """Return each measure at every position of a part, `(total,)`; 0 at the last position of a document."""
    found: dict[str, list[torch.Tensor]] = {}
    length = part.packed.tokens.shape[1]
    count = at_once(model, length)
    with undisturbed(model), torch.no_grad():
        for rows in torch.arange(len(part.packed)).split(rows_at_once(model, length)):
            tokens, targets, documents = (
                t[rows].to(device) for t in (part.packed.tokens, part.packed.targets, part.packed.documents)
            )
            output = source(model, count)(tokens, documents)
            for measure in measures:
                each = each_position(model, output, targets, partial(_values, measure), count)
                found.setdefault(measure.name, []).append(each.view_as(tokens).cpu())
    return {name: part.packed.gathered(torch.cat(values)) for name, values in found.items()}


def _values(measure: Measure, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.float()
    if measure is CROSS_ENTROPY:
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
    return torch.where(targets != IGNORED, measure(logits, targets.clamp(min=0)), 0.0)


def group_means(
    each: torch.Tensor, part: Part, groups: torch.Tensor, names: Sequence[str], counted: torch.Tensor | None = None
) -> dict[str, float]:
    """Return the mean of a value per token over each group's documents, by group name.

    Args:
        each: the values, `(total,)`.
        groups: group numbers of documents, `(documents,)`.
        counted: mask of the positions to include, `(total,)` bool; all if None.
    """
    corpus = part.corpus
    predicts = torch.ones(len(corpus.tokens), dtype=torch.bool)
    predicts[corpus.starts + corpus.lengths - 1] = False
    predicts &= True if counted is None else counted
    found = {}
    for number, name in enumerate(names):
        own = predicts & (groups[corpus.documents] == number)
        if bool(own.any()):
            found[name] = float(each[own].double().mean())
    return found
