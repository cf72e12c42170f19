"""Which words lie along a dimension of the residual stream, and how often words come in texts (GR section 4.2.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gradroute.data.text.packing import Corpus
from gradroute.data.text.rules import occurrences
from gradroute.data.text.tokenizing import Tokenizer

Sequences = list[tuple[int, ...]]


@dataclass(frozen=True)
class Words:
    """Token sequences of the words that were routed, and of those that are related to them and were not."""

    routed: Sequences
    related: Sequences

    def kinds(self) -> dict[int, str]:
        """Which tokens are a word of either kind by themselves."""
        found = {s[0]: "related" for s in self.related if len(s) == 1}
        return found | {s[0]: "routed" for s in self.routed if len(s) == 1}


def cosines(unembedding: torch.Tensor, unit: int) -> torch.Tensor:
    """Of each token's row, `(vocabulary,)`, from `(vocabulary, width)`, with one dimension of the residual stream."""
    return torch.nn.functional.normalize(unembedding, dim=1)[:, unit]


def nearest(unembedding: torch.Tensor, unit: int, count: int, leave_out: Iterable[int | None] = ()) -> torch.Tensor:
    """The tokens with the largest |cosine| with a dimension, `(count,)`, the largest first."""
    size = cosines(unembedding, unit).abs()
    size[[token for token in leave_out if token is not None]] = -1.0
    return torch.argsort(size, descending=True, stable=True)[:count]


def related_share(
    unembedding: torch.Tensor, unit: int, count: int, tokenizer: Tokenizer, kinds: dict[int, str]
) -> float:
    """The share of the `count` tokens nearest to a dimension that are related words which were not routed."""
    found = nearest(unembedding, unit, count, (tokenizer.end, tokenizer.unknown)).tolist()
    return sum(kinds.get(token) == "related" for token in found) / count


def orientation(unembedding: torch.Tensor, unit: int, kinds: dict[int, str]) -> float:
    """1 or -1: the direction along a dimension in which the routed words lie, by the mean of their cosines."""
    routed = [token for token, kind in kinds.items() if kind == "routed"]
    return 1.0 if not routed or float(cosines(unembedding, unit)[routed].mean()) >= 0 else -1.0


def frequency(texts: Sequence[Sequence[int]], sequences: Sequences) -> float:
    """The share of the tokens of texts that belong to one of the sequences."""
    corpus = Corpus.of([list(text) for text in texts if len(text)]) if any(len(text) for text in texts) else None
    return float(occurrences(corpus, sequences).double().mean()) if corpus else 0.0
