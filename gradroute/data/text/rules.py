"""Which documents and which tokens are a group's, and by how much.

A *share* is how much of a token is a group's, from 0 to 1; what is missing to 1 takes the default route. Shares are
those of tokens, `(total,)` over a corpus; `memberships` moves them to the positions that predict the tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradroute.data.text.packing import Corpus, Packed
from gradroute.errors import UserError, unknown

if TYPE_CHECKING:
    from gradroute.data.text.tokenizing import Tokenizer

MORE_RETAIN, MORE_FORGET, SCALE, BIAS = 20, 1, 1.0, -4.0  # of GR App. C, as released


# ---- documents, `(documents,)` bool ---------------------------------------------------------------------------------


def by_words(texts: Sequence[str], words: Sequence[str]) -> torch.Tensor:
    """The documents with one of these words or phrases, whole and in any case.

    Raises: UserError for an empty list or word, or if no document or every one has one.
    """
    if not words or not all(word.strip() for word in words):
        raise UserError(f"word list {list(words)}: give at least one word, and no empty one")
    alternatives = "|".join(re.escape(word.strip()) for word in words)
    return _found(texts, re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE), f"word list {list(words)}")


def by_pattern(texts: Sequence[str], pattern: str) -> torch.Tensor:
    """The documents in which a regular expression of Python is found.

    Raises: UserError if it cannot be read, or is found in no document or in every one.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern '{pattern}' is no regular expression: {error}") from None
    return _found(texts, compiled, f"pattern '{pattern}'")


def by_metadata(columns: Mapping[str, Sequence[str]], column: str, values: Sequence[Any]) -> torch.Tensor:
    """The documents whose column has one of the values.

    Raises: UserError for an unknown column or value, or if no document or every one has it.
    """
    if column not in columns:
        raise unknown("column of the documents:", column, columns)
    wanted, present = [str(value) for value in values], set(columns[column])
    for value in wanted:
        if value not in present:
            raise unknown(f"value of column '{column}':", value, sorted(present))
    chosen = [value in set(wanted) for value in columns[column]]
    return _some(torch.tensor(chosen), f"column '{column}', values {wanted}")


def with_phrase(corpus: Corpus, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """The documents with one of these token sequences. Raises: UserError if no document or every one has one."""
    counts = torch.zeros(len(corpus.lengths)).index_add_(0, corpus.documents, occurrences(corpus, sequences).float())
    return _some(counts > 0, f"token sequences {[list(sequence) for sequence in sequences]}")


def _found(texts: Sequence[str], pattern: re.Pattern[str], what: str) -> torch.Tensor:
    return _some(torch.tensor([pattern.search(text) is not None for text in texts], dtype=torch.bool), what)


def _some(chosen: torch.Tensor, what: str) -> torch.Tensor:
    count = int(chosen.sum())
    if not 0 < count < len(chosen):
        raise UserError(f"{what}: is in {'every one' if count else 'none'} of the {len(chosen)} documents; it must "
                        "tell some from others")  # fmt: skip
    return chosen


# ---- tokens, `(total,)` ---------------------------------------------------------------------------------------------


def variants(tokenizer: "Tokenizer", phrase: str, case: bool = True, space: bool = True) -> list[tuple[int, ...]]:
    """The token sequences that spell a phrase: with and without a space before it, in lower, upper and title case.

    Without `case` or `space` the phrase's own are kept. A sequence may also be the beginning of a longer word (`tree`
    in `treehouse`). Spellings with unknown words are left out.

    Raises: UserError if the phrase has no token, or every spelling has an unknown word.
    """
    bare = phrase.strip()
    cased = [bare, bare.lower(), bare[:1].upper() + bare[1:], bare.upper()] if case else [bare]
    before = ("", " ") if space else (phrase[: len(phrase) - len(phrase.lstrip())],)
    spellings = [first + text for text in dict.fromkeys(cased) for first in before]
    found = dict.fromkeys(tuple(tokens) for tokens in tokenizer.encode(spellings) if tokens)
    if not found or not bare:
        raise UserError(f"phrase '{phrase}' tokenizes to nothing; give text")
    known = [sequence for sequence in found if tokenizer.unknown not in sequence]
    if not known:
        raise UserError(f"phrase '{phrase}' has a word outside the vocabulary; give one of the corpus")
    return known


def occurrences(corpus: Corpus, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Bool: the tokens of every place where one of the token sequences stands, overlapping ones too."""
    tokens, documents, total = corpus.tokens, corpus.documents, len(corpus.tokens)
    found = torch.zeros(total, dtype=torch.bool)
    for sequence in sequences:
        size, places = len(sequence), max(total - len(sequence) + 1, 0)
        here = documents[:places] == documents[size - 1 :][:places]
        for offset, token in enumerate(sequence):
            here &= tokens[offset:][:places] == token
        for offset in range(size):
            found[offset:][:places] |= here
    return found


def everywhere(corpus: Corpus, chosen: torch.Tensor) -> torch.Tensor:
    """Share 1 of every token of the chosen documents, `(documents,)` bool."""
    return chosen[corpus.documents].float()


def ratio_weights(corpus: Corpus, forget: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Each token's weight by how frequent it is in forget documents against the others, `(vocabulary,)` (GR App. C).

    weight = 1 - sigmoid(r - 1 / r - 4), r the ratio of its relative frequencies after 1 was added to every forget count
    and 20 to every other. 0 is fully routed, 1 not at all.

    Args:
        forget: `(documents,)` bool, those that carry the label; one that lost it counts with the others, so that
            nothing leaks that training is not told.

    Raises: UserError if no document is labelled, or every one.
    """
    inside = _some(forget, "the forget label")[corpus.documents]
    counts = [torch.bincount(corpus.tokens[part], minlength=vocabulary).double() for part in (inside, ~inside)]
    more = [count + extra for count, extra in zip(counts, (MORE_FORGET, MORE_RETAIN), strict=True)]
    return weight_of_ratio((more[0] / more[0].sum()) / (more[1] / more[1].sum()))


def weight_of_ratio(ratio: torch.Tensor) -> torch.Tensor:
    """The weight of a token whose frequency in forget documents is `ratio` times that in the others (GR App. C)."""
    return torch.sigmoid(-(SCALE * (ratio - 1 / ratio) + BIAS))


def by_weight(corpus: Corpus, weights: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Shares 1 - weight of the tokens of forget documents, `(documents,)` bool; 0 in all others.

    A route of weight -0.75 then has the released gradient weight, w + (1 - w) * -0.75.
    """
    return (1 - weights.float()[corpus.tokens]) * forget[corpus.documents]


def memberships(corpus: Corpus, packed: Packed, shares: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Shares of groups as `Router.route` takes them, `(rows, length, groups)`, at the positions that *predict* a token.

    Groups are in the order of the mapping, which must be the router's. Padding and a document's last position have 0.

    Raises: UserError for shares of another shape, outside [0, 1], or that sum to more than 1 at a token.
    """
    for name, share in shares.items():
        if share.shape != corpus.tokens.shape:
            raise UserError(f"group '{name}': shares of shape {tuple(share.shape)}, not one for each of the "
                            f"{len(corpus.tokens)} tokens")  # fmt: skip
    stacked = torch.stack([share.float() for share in shares.values()], -1)
    wrong = ~((stacked >= 0) & (stacked <= 1)).all(-1) | (stacked.sum(-1) > 1 + 1e-6)
    if bool(wrong.any()):
        raise UserError(f"shares of {list(shares)} at {int(wrong.sum())} tokens are no convex mixture; each must be "
                        "from 0 to 1, and their sum at most 1")  # fmt: skip
    return packed.spread(corpus.predicting(stacked))
