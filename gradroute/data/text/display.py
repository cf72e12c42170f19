"""Show what a token rule does: the most and the least routed tokens, and documents coloured by weight."""

from dataclasses import dataclass

import torch

from gradroute.data.text.packing import Corpus
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError

LONGEST = 400  # tokens shown of a document


@dataclass(frozen=True)
class TokenWeight:
    """A token, its count, and its mean weight: 0 is fully routed, 1 is not routed."""

    token: str
    count: int
    weight: float


def ranked(
    corpus: Corpus, shares: torch.Tensor, tokenizer: Tokenizer, inside: torch.Tensor, rows: int = 20, least: int = 10
) -> tuple[list[TokenWeight], list[TokenWeight]]:
    """Return the most and the least routed tokens, as in GR table 3; at equal weights, frequent tokens come first.

    Args:
        shares: `(total,)`, of the corpus's tokens.
        inside: `(documents,)` bool, the documents to count.
        least: leave out tokens with a lower count in these documents.

    Raises: UserError if no token has this count.
    """
    counted = inside[corpus.documents]
    counts = torch.bincount(corpus.tokens[counted], minlength=tokenizer.size)
    sums = torch.zeros(tokenizer.size, dtype=torch.float64)
    sums.index_add_(0, corpus.tokens[counted], shares[counted].double())
    frequent = (counts >= max(least, 1)).nonzero().flatten()
    if not len(frequent):
        raise UserError(f"token weights: no token occurs {least} times in {int(inside.sum())} documents; lower least")
    found = [
        TokenWeight(tokenizer.spellings[token], int(counts[token]), 1 - float(sums[token] / counts[token]))
        for token in frequent.tolist()
    ]
    most = sorted(found, key=lambda row: (round(row.weight, 9), -row.count, row.token))
    fewest = sorted(found, key=lambda row: (-round(row.weight, 9), -row.count, row.token))
    return most[:rows], fewest[:rows]


def coloured(corpus: Corpus, shares: torch.Tensor, tokenizer: Tokenizer, document: int) -> list[tuple[str, float]]:
    """Return the spellings of the first `LONGEST` tokens of a document, each with its share.

    Raises: UserError if there is no such document in the corpus.
    """
    if not 0 <= document < len(corpus.lengths):
        raise UserError(f"document {document} does not exist; use 0 to {len(corpus.lengths) - 1}")
    start, size = int(corpus.starts[document]), int(corpus.lengths[document])
    tokens, own = corpus.document(document).tolist(), shares[start : start + size].tolist()
    found = [(tokenizer.spellings[token], round(share, 3)) for token, share in zip(tokens, own, strict=True)]
    return [*found[:LONGEST], *([(" …", 0.0)] if size > LONGEST else [])]
