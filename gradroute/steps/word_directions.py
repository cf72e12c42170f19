"""Find the words along a dimension of the residual stream, and count words in texts (GR section 4.2.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from gradroute.data.text.packing import Corpus
from gradroute.data.text.rules import occurrences
from gradroute.data.text.tokenizing import Tokenizer

Sequences = list[tuple[int, ...]]


@dataclass(frozen=True)
class Words:
    """Token sequences of the words that were routed, and of related words that were not."""

    routed: Sequences
    related: Sequences

    def kinds(self) -> dict[int, str]:
        """Return the kind, `routed` or `related`, of every token that is a whole word of that kind."""
        found = {s[0]: "related" for s in self.related if len(s) == 1}
        return found | {s[0]: "routed" for s in self.routed if len(s) == 1}


def cosines(unembedding: torch.Tensor, unit: int) -> torch.Tensor:
    """Return each row's cosine with a dimension of the residual stream: `(vocabulary, width)` to `(vocabulary,)`."""
    return torch.nn.functional.normalize(unembedding, dim=1)[:, unit]


def nearest(unembedding: torch.Tensor, unit: int, count: int, leave_out: Iterable[int | None] = ()) -> torch.Tensor:
    """Return the tokens with the largest |cosine| with a dimension, `(count,)`, largest first."""
    size = cosines(unembedding, unit).abs()
    size[[token for token in leave_out if token is not None]] = -1.0
    return torch.argsort(size, descending=True, stable=True)[:count]


def related_share(
    unembedding: torch.Tensor, unit: int, count: int, tokenizer: Tokenizer, kinds: dict[int, str]
) -> float:
    """Return the share of related words, which were not routed, in the `count` tokens nearest to a dimension."""
    found = nearest(unembedding, unit, count, (tokenizer.end, tokenizer.unknown)).tolist()
    return sum(kinds.get(token) == "related" for token in found) / count


def orientation(unembedding: torch.Tensor, unit: int, kinds: dict[int, str]) -> float:
    """Return the direction, 1 or -1, of the routed words along a dimension: the sign of their mean cosine."""
    routed = [token for token, kind in kinds.items() if kind == "routed"]
    return 1.0 if not routed or float(cosines(unembedding, unit)[routed].mean()) >= 0 else -1.0


def frequency(texts: Sequence[Sequence[int]], sequences: Sequences) -> float:
    """Return the share of the texts' tokens that belong to one of the sequences."""
    corpus = Corpus.of([list(text) for text in texts if len(text)]) if any(len(text) for text in texts) else None
    return float(occurrences(corpus, sequences).double().mean()) if corpus else 0.0
