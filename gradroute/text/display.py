"""What a token rule does, for people: the most and least routed tokens, and documents coloured by weight."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from gradroute.errors import UserError
from gradroute.text.packing import Corpus
from gradroute.text.tokenizing import Tokenizer

TEMPLATES = Path(__file__).parent.parent / "templates"


@dataclass(frozen=True)
class TokenWeight:
    """A token, how often it occurs, and its mean weight there: 0 is fully routed, 1 not at all."""

    token: str
    count: int
    weight: float


def ranked(
    corpus: Corpus, shares: torch.Tensor, tokenizer: Tokenizer, inside: torch.Tensor, rows: int = 20, least: int = 10
) -> tuple[list[TokenWeight], list[TokenWeight]]:
    """The most and the least routed tokens, as in GR table 3; of one weight, the more frequent first.

    Args:
        shares: of the corpus's tokens, `(total,)`.
        inside: `(documents,)` bool, the documents that count.
        least: tokens that occur less often there are left out.

    Raises: UserError if no token occurs so often.
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


def coloured(corpus: Corpus, shares: torch.Tensor, tokenizer: Tokenizer, documents: Sequence[int], title: str) -> str:
    """An HTML page, without network, of a few documents: each token's background is as strong as its share.

    Raises: UserError for a document that is not in the corpus.
    """
    import jinja2

    shown = []
    for number in documents:
        if not 0 <= number < len(corpus.lengths):
            raise UserError(f"document {number} is not there; documents go from 0 to {len(corpus.lengths) - 1}")
        start, size = int(corpus.starts[number]), int(corpus.lengths[number])
        tokens, own = corpus.document(number).tolist(), shares[start : start + size].tolist()
        pairs = [(tokenizer.spellings[token], round(share, 3)) for token, share in zip(tokens, own, strict=True)]
        shown.append({"number": number, "tokens": pairs})
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, trim_blocks=True)
    return environment.get_template("tokens.html.j2").render(title=title, documents=shown)
