"""Rules that select a group's documents and tokens.

A *share*, from 0 to 1, is how much of a token belongs to a group; the rest, up to 1, takes the default route. Shares
are per token, `(total,)` over a corpus; `memberships` moves them to the positions that predict the tokens.
"""

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from gradroute.data.text.packing import Corpus, Packed
from gradroute.errors import UserError, unknown

if TYPE_CHECKING:
    from gradroute.data.text.tokenizing import Tokenizer

MORE_RETAIN, MORE_FORGET, SCALE, BIAS = 20, 1, 1.0, -4.0  # GR App. C, as released


# ---- documents, `(documents,)` bool ---------------------------------------------------------------------------------


def by_words(texts: Sequence[str], words: Sequence[str]) -> torch.Tensor:
    """Return the documents with one of these words or phrases, as whole words and in any case.

    Raises: UserError for an empty list or word, or if no document or every document has one.
    """
    if not words or not all(word.strip() for word in words):
        raise UserError(f"word list {list(words)}: give at least one word, and no empty one")
    alternatives = "|".join(re.escape(word.strip()) for word in words)
    return _found(texts, re.compile(rf"(?<!\w)(?:{alternatives})(?!\w)", re.IGNORECASE), f"word list {list(words)}")


def by_pattern(texts: Sequence[str], pattern: str) -> torch.Tensor:
    """Return the documents in which a Python regular expression is found.

    Raises: UserError if it is invalid, or is found in no document or in every document.
    """
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UserError(f"pattern '{pattern}' is not a regular expression: {error}") from None
    return _found(texts, compiled, f"pattern '{pattern}'")


def by_metadata(columns: Mapping[str, Sequence[str]], column: str, values: Sequence[Any]) -> torch.Tensor:
    """Return the documents whose column has one of the values.

    Raises: UserError for an unknown column or value, or if no document or every document has one.
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
    """Return the documents with one of these token sequences. Raises: UserError if none or every document has one."""
    counts = torch.zeros(len(corpus.lengths)).index_add_(0, corpus.documents, occurrences(corpus, sequences).float())
    return _some(counts > 0, f"token sequences {[list(sequence) for sequence in sequences]}")


def _found(texts: Sequence[str], pattern: re.Pattern[str], what: str) -> torch.Tensor:
    return _some(torch.tensor([pattern.search(text) is not None for text in texts], dtype=torch.bool), what)


def _some(chosen: torch.Tensor, what: str) -> torch.Tensor:
    count = int(chosen.sum())
    if not 0 < count < len(chosen):
        raise UserError(f"{what}: is in {'all' if count else 'none'} of the {len(chosen)} documents; give one that is "
                        "in some of them only")  # fmt: skip
    return chosen


# ---- tokens, `(total,)` ---------------------------------------------------------------------------------------------


def variants(tokenizer: "Tokenizer", phrase: str, case: bool = True, space: bool = True) -> list[tuple[int, ...]]:
    """Return the token sequences that spell a phrase: with and without a space before it, in lower, upper, title case.

    Without `case` or `space`, the case or the space of the phrase itself is kept. A sequence may also begin a longer
    word (`tree` in `treehouse`). Spellings with unknown words are left out.

    Raises: UserError if the phrase has no tokens, or every spelling has an unknown word.
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
        raise UserError(f"phrase '{phrase}' has a word outside the vocabulary; use words of the corpus")
    return known


def starts_of(corpus: Corpus, sequence: Sequence[int]) -> torch.Tensor:
    """Return at which tokens, `(total,)` bool, a token sequence starts."""
    tokens, documents, size = corpus.tokens, corpus.documents, len(sequence)
    places = max(len(tokens) - size + 1, 0)
    found = torch.zeros(len(tokens), dtype=torch.bool)
    found[:places] = documents[:places] == documents[size - 1 :][:places]
    for offset, token in enumerate(sequence):
        found[:places] &= tokens[offset:][:places] == token
    return found


def occurrences(corpus: Corpus, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Return which tokens, `(total,)` bool, are part of one of the token sequences; these may overlap."""
    total = len(corpus.tokens)
    found = torch.zeros(total, dtype=torch.bool)
    for sequence in sequences:
        starts = starts_of(corpus, sequence)
        for offset in range(min(len(sequence), total)):
            found[offset:] |= starts[: total - offset]
    return found


def everywhere(corpus: Corpus, chosen: torch.Tensor) -> torch.Tensor:
    """Return shares of 1 for all tokens of the chosen documents, `(documents,)` bool, and 0 for all others."""
    return chosen[corpus.documents].float()


def ratio_weights(corpus: Corpus, forget: torch.Tensor, vocabulary: int) -> torch.Tensor:
    """Return each token's weight, `(vocabulary,)`, by its frequency in forget and in other documents (GR App. C).

    weight = 1 - sigmoid(r - 1 / r - 4), where r is the ratio of the relative frequencies after adding 1 to every forget
    count and 20 to every other count. 0 is fully routed, 1 is not routed.

    Args:
        forget: `(documents,)` bool, the documents that carry the label. Documents that lost it count with the others,
            so that no hidden label leaks into training.

    Raises: UserError if no document or every document is labelled.
    """
    inside = _some(forget, "the forget label")[corpus.documents]
    counts = [torch.bincount(corpus.tokens[part], minlength=vocabulary).double() for part in (inside, ~inside)]
    more = [count + extra for count, extra in zip(counts, (MORE_FORGET, MORE_RETAIN), strict=True)]
    return weight_of_ratio((more[0] / more[0].sum()) / (more[1] / more[1].sum()))


def weight_of_ratio(ratio: torch.Tensor) -> torch.Tensor:
    """Return the weight of a token that is `ratio` times as frequent in forget documents as in others (GR App. C)."""
    return torch.sigmoid(-(SCALE * (ratio - 1 / ratio) + BIAS))


def by_weight(corpus: Corpus, weights: torch.Tensor, forget: torch.Tensor) -> torch.Tensor:
    """Return shares of 1 - weight for the tokens of forget documents, `(documents,)` bool; 0 for all others.

    A route of weight -0.75 then has the released gradient weight, w + (1 - w) * -0.75.
    """
    return (1 - weights.float()[corpus.tokens]) * forget[corpus.documents]


def memberships(corpus: Corpus, packed: Packed, shares: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the groups' shares for `Router.route`, `(rows, length, groups)`, at the positions that *predict* a token.

    The mapping must have the groups in the router's order. Padding and a document's last position have 0.

    Raises: UserError for shares of another shape, outside [0, 1], or that sum to more than 1 at a token.
    """
    for name, share in shares.items():
        if share.shape != corpus.tokens.shape:
            raise UserError(f"group '{name}': shares of shape {tuple(share.shape)}, not one for each of the "
                            f"{len(corpus.tokens)} tokens")  # fmt: skip
    stacked = torch.stack([share.float() for share in shares.values()], -1)
    wrong = ~((stacked >= 0) & (stacked <= 1)).all(-1) | (stacked.sum(-1) > 1 + 1e-6)
    if bool(wrong.any()):
        raise UserError(f"shares of {list(shares)} at {int(wrong.sum())} tokens are not a convex mixture; each must be "
                        "from 0 to 1, and their sum at most 1")  # fmt: skip
    return packed.spread(corpus.predicting(stacked))
