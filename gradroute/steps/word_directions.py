"""Find the words along a dimension of the residual stream, and where words stand in texts (GR section 4.2.1)."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from gradroute.data.text.packing import Corpus
from gradroute.data.text.rules import occurrences, starts_of, variants
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError

Sequences = list[tuple[int, ...]]
KINDS = ("related", "matched", "routed")
MATCHED = 3  # frequency-matched words for each related word
WORD = re.compile(r"[^\W\d_]{2,}")


@dataclass(frozen=True)
class Words:
    """Words that were routed, related ones that were not, and frequency-matched ones: token sequences by word."""

    routed: Mapping[str, Sequences]
    related: Mapping[str, Sequences]
    matched: Mapping[str, Sequences] = field(default_factory=dict)

    def sequences(self, kind: str) -> Sequences:
        """Return the token sequences of all words of a kind."""
        own: Mapping[str, Sequences] = getattr(self, kind)
        return [sequence for sequences in own.values() for sequence in sequences]

    def tokens(self, kind: str) -> list[int]:
        """Return the tokens that are a whole word of a kind, ascending."""
        return sorted({sequence[0] for sequence in self.sequences(kind) if len(sequence) == 1})

    def kinds(self) -> dict[int, str]:
        """Return the kind, `routed` or `related`, of every token that is a whole word of that kind."""
        return {token: kind for kind in ("related", "routed") for token in self.tokens(kind)}


def frequency_matched(
    texts: Iterable[str], related: Sequence[str], routed: Sequence[str], tokenizer: Tokenizer, each: int = MATCHED
) -> list[str]:
    """Return `each` other words for each related word, which are about as frequent in the texts, in any case.

    The rule is fixed: for each related word, from the most to the least frequent, take the words with the nearest
    counts that are not taken yet; of equally near ones, the first in alphabetical order. Routed words, related words
    and words outside the vocabulary are left out.
    """
    counts = Counter(word for text in texts for word in WORD.findall(text.lower()))
    left_out = {word.strip().lower() for word in (*related, *routed)}
    pool, found = [word for word in sorted(counts) if word not in left_out], list[str]()
    for wanted in sorted((counts[word.strip().lower()] for word in related), reverse=True):
        near = (word for word in sorted(pool, key=lambda word: abs(counts[word] - wanted)) if _known(tokenizer, word))
        chosen = [word for word, _ in zip(near, range(each), strict=False)]
        found += chosen
        pool = [word for word in pool if word not in chosen]
    return found


def _known(tokenizer: Tokenizer, word: str) -> bool:
    try:
        return bool(variants(tokenizer, word))
    except UserError:
        return False


def whole_words(corpus: Corpus, sequences: Sequences, spellings: Sequence[str]) -> torch.Tensor:
    """Return the place of the first token and the number of tokens of each whole word, `(words, 2)` int64.

    A sequence inside a longer word does not count, nor one at the start of a document, which nothing predicts.
    """
    begins = torch.tensor([text[:1].isalpha() for text in spellings])
    ends = torch.tensor([text[-1:].isalpha() for text in spellings])
    before, after = corpus.tokens[:-1], corpus.tokens[1:]
    glued = ends[before] & begins[after] & (corpus.documents[:-1] == corpus.documents[1:])
    glued = torch.cat([torch.tensor([False]), glued, torch.tensor([False])])  # whether token i continues a word
    found: dict[int, int] = {}
    taken = torch.zeros(len(corpus.tokens), dtype=torch.bool)
    for sequence in sorted(sequences, key=len, reverse=True):  # the longest first, so that no word counts twice
        size = len(sequence)
        starts = starts_of(corpus, sequence) & ~glued[:-1]
        starts[corpus.starts] = False
        starts[: len(starts) - size + 1] &= ~glued[size:]
        for first in torch.nonzero(starts).flatten().tolist():
            if not bool(taken[first : first + size].any()):
                taken[first : first + size] = True
                found[first] = size
    return torch.tensor(sorted(found.items()), dtype=torch.int64).view(-1, 2)


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


def frequency(texts: Sequence[Sequence[int]], sequences: Sequences) -> float:
    """Return the share of the texts' tokens that belong to one of the sequences."""
    corpus = Corpus.of([list(text) for text in texts if len(text)]) if any(len(text) for text in texts) else None
    return float(occurrences(corpus, sequences).double().mean()) if corpus else 0.0
