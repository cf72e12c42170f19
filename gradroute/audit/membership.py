"""Membership inference: whether an attacker can tell which documents a model was trained on, and whether to believe it.

An attack scores documents; a higher score says "member". It is believed only if a model of the texts alone cannot tell
members from non-members, and non-members cannot be told from other non-members.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn

from gradroute.audit.measures import auroc
from gradroute.data.text.corpora import Part
from gradroute.data.text.documents import Documents
from gradroute.data.text.packing import Corpus, pack
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.tasks.language_losses import token_values
from gradroute.training.measures import CROSS_ENTROPY

FALSE_POSITIVES = 0.01  # the rate at which true positives are counted
LOWEST = 0.2  # share of a document's tokens, the least likely ones, that Min-K% averages (Shi et al. 2023)
FOLDS, SMOOTHING = 5, 1.0


def part_of(texts: Sequence[str], tokenizer: Tokenizer, length: int) -> Part:
    """Return texts as documents of their own, tokenized and packed."""
    corpus = Corpus.of(tokenizer.encode(texts), tokenizer.end)
    return Part(Documents(list(texts)), corpus, pack(corpus, length))


def scores(model: nn.Module, part: Part, device: torch.device) -> dict[str, torch.Tensor]:
    """Return each document's score, `(documents,)`, by attack: `loss`, and `min_k` for Min-K%; higher says member."""
    each = token_values(model, part, [CROSS_ENTROPY], device)[CROSS_ENTROPY.name]
    found: dict[str, list[float]] = {"loss": [], "min_k": []}
    for start, size in zip(part.corpus.starts.tolist(), part.corpus.lengths.tolist(), strict=True):
        own = each[start : start + size - 1].double()
        worst = own.sort(descending=True).values[: max(1, round(LOWEST * len(own)))]
        found["loss"].append(-float(own.mean()) if len(own) else 0.0)
        found["min_k"].append(-float(worst.mean()) if len(own) else 0.0)
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in found.items()}


def auc(members: torch.Tensor, others: torch.Tensor) -> float:
    """Return the chance that a member has a higher score than a non-member, ties counted half."""
    return auroc(members.tolist(), others.tolist())


def true_positives(members: torch.Tensor, others: torch.Tensor, rate: float = FALSE_POSITIVES) -> float:
    """Return the largest share of members above a threshold that at most a share `rate` of the others exceeds."""
    allowed = int(rate * len(others) + 1e-9)
    threshold = others.sort(descending=True).values[allowed]
    return float((members > threshold).double().mean())


def chance_bound(members: int, others: int) -> float:
    """Return how far from 0.5 the AUC of equal distributions is at most, in 95 of 100 cases (normal approximation)."""
    return 1.96 * math.sqrt((members + others + 1) / (12 * members * others))


def text_auc(members: Sequence[Sequence[int]], others: Sequence[Sequence[int]], tokens: int) -> float:
    """Return the AUC of a bag of words that tells members from non-members by their tokens alone.

    Naive Bayes with Laplace smoothing, each document scored by a model of the other folds; no model that was trained on
    the members is asked.
    """
    documents = [*members, *others]
    counts = torch.zeros(len(documents), tokens, dtype=torch.float64)
    for row, document in zip(counts, documents, strict=True):
        row.index_add_(0, torch.tensor(document), torch.ones(len(document), dtype=torch.float64))
    label = torch.tensor([True] * len(members) + [False] * len(others))
    fold = torch.cat([torch.arange(len(own)) % FOLDS for own in (members, others)])
    found = torch.zeros(len(documents), dtype=torch.float64)
    for number in range(FOLDS):
        seen, asked = fold != number, fold == number
        sums = [counts[seen & (label == kind)].sum(0) + SMOOTHING for kind in (True, False)]
        ratio = (sums[0] / sums[0].sum()).log() - (sums[1] / sums[1].sum()).log()
        found[asked] = counts[asked] @ ratio
    return auc(found[label], found[~label])
