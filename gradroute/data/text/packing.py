"""Concatenate tokenized documents, and pack them into rows of one length without leakage between documents."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from heapq import heappop, heappush

import torch

from gradroute.errors import UserError

IGNORED = -100  # a target without loss: the `ignore_index` of `torch.nn.functional.cross_entropy`


@dataclass(frozen=True)
class Corpus:
    """Tokenized documents, concatenated.

    tokens: `(total,)` int64. lengths: `(documents,)` int64, in tokens. Raises: UserError for a document without tokens.
    """

    tokens: torch.Tensor
    lengths: torch.Tensor

    def __post_init__(self) -> None:
        if not len(self.lengths) or bool((self.lengths < 1).any()):
            number = int((self.lengths < 1).nonzero()[0]) if len(self.lengths) else 0
            raise UserError(f"document {number} has no token; leave it out")

    @classmethod
    def of(cls, documents: Sequence[Sequence[int]], end: int | None = None) -> "Corpus":
        """Build a corpus from lists of tokens; `end`, if given, is appended to each."""
        last = [] if end is None else [end]
        lists = [[*document, *last] for document in documents]
        lengths = torch.tensor([len(tokens) for tokens in lists], dtype=torch.int64)
        return cls(torch.tensor([token for tokens in lists for token in tokens], dtype=torch.int64), lengths)

    @cached_property
    def documents(self) -> torch.Tensor:
        """The number of each token's document, `(total,)` int64."""
        return torch.arange(len(self.lengths)).repeat_interleave(self.lengths)

    @cached_property
    def starts(self) -> torch.Tensor:
        """The place of each document's first token, `(documents,)` int64."""
        return self.lengths.cumsum(0) - self.lengths

    def document(self, number: int) -> torch.Tensor:
        """Return the tokens of one document, `(tokens,)` int64."""
        start = int(self.starts[number])
        return self.tokens[start : start + int(self.lengths[number])]

    def predicting(self, values: torch.Tensor) -> torch.Tensor:
        """Move each token's value, `(total, …)`, to the position that predicts the token: one before it.

        The last position of a document predicts nothing and gets 0. No position predicts a document's first token, so
        its value is dropped.
        """
        moved = torch.zeros_like(values)
        moved[:-1] = values[1:]
        moved[self.starts + self.lengths - 1] = 0
        return moved


@dataclass(frozen=True)
class Packed:
    """Rows of packed documents: each tensor is `(rows, length)` int64.

    index: the place of each token in the corpus, -1 for padding. tokens: 0 for padding. targets: the next token of the
    same document, even if it is in another row; `IGNORED` at a document's end and for padding. documents: the number
    of each token's document, -1 for padding; pass them to a model as `document_ids`.
    """

    index: torch.Tensor
    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    total: int = field(repr=False)  # tokens of the corpus

    def __len__(self) -> int:
        return len(self.index)

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Lay out values of the corpus's positions, `(total, …)`, as `(rows, length, …)`; 0 for padding."""
        spread: torch.Tensor = values[self.index.clamp(min=0)]
        spread[self.index < 0] = 0
        return spread

    def gathered(self, values: torch.Tensor) -> torch.Tensor:
        """Reverse `spread`: `(rows, length, …)` to `(total, …)`, in the order of the corpus."""
        there = self.index >= 0
        gathered = values.new_zeros((self.total, *values.shape[2:]))
        gathered[self.index[there]] = values[there]
        return gathered


def pack(corpus: Corpus, length: int, kinds: torch.Tensor | None = None) -> Packed:
    """Pack documents into rows of `length` tokens by best fit; each token appears once.

    A document of at most `length` tokens stays in one piece. A longer one is cut, and its last piece may share a row.
    Each piece in turn goes to the first row with the least sufficient space. The rest of a row is padding.
    Documents of different `kinds`, `(documents,)`, share no row.

    Raises: UserError for a length below 2.
    """
    if length < 2:
        raise UserError(f"packing: length={length}: must be 2 or more")
    pieces = _pieces(corpus, length)
    rows, offsets, count = _places_by(
        pieces, [0] * len(pieces) if kinds is None else _kinds(corpus, pieces, kinds), length
    )
    index = torch.full((count, length), -1, dtype=torch.int64)
    first, sizes = torch.tensor(pieces, dtype=torch.int64).unbind(1)
    within = torch.arange(int(sizes.sum())) - (sizes.cumsum(0) - sizes).repeat_interleave(sizes)
    place = torch.tensor(rows) * length + torch.tensor(offsets)
    index.view(-1)[place.repeat_interleave(sizes) + within] = first.repeat_interleave(sizes) + within
    padding, at = index < 0, index.clamp(min=0)
    following = (at + 1).clamp(max=len(corpus.tokens) - 1)
    last = (corpus.documents[following] != corpus.documents[at]) | (following == at)
    targets = corpus.tokens[following].masked_fill(last | padding, IGNORED)
    tokens, documents = corpus.tokens[at].masked_fill(padding, 0), corpus.documents[at].masked_fill(padding, -1)
    return Packed(index, tokens, targets, documents, len(corpus.tokens))


def _pieces(corpus: Corpus, length: int) -> list[tuple[int, int]]:
    """Return first token and size of each piece; all pieces of a document but the last have size `length`."""
    return [
        (start + cut, min(length, size - cut))
        for start, size in zip(corpus.starts.tolist(), corpus.lengths.tolist(), strict=True)
        for cut in range(0, size, length)
    ]


def _kinds(corpus: Corpus, pieces: list[tuple[int, int]], kinds: torch.Tensor) -> list[int]:
    """Return the kind of each piece: that of its document."""
    found: list[int] = kinds.cpu()[corpus.documents[torch.tensor([start for start, _ in pieces])]].tolist()
    return found


def _places_by(pieces: list[tuple[int, int]], kinds: list[int], length: int) -> tuple[list[int], list[int], int]:
    """Return the row and the offset of each piece, and the number of rows; pieces of different kinds share no row."""
    rows, offsets, count = [0] * len(pieces), [0] * len(pieces), 0
    for kind in sorted(set(kinds)):
        own = [place for place, other in enumerate(kinds) if other == kind]
        *found, more = _places([pieces[place][1] for place in own], length)
        for place, row, offset in zip(own, *found, strict=True):
            rows[place], offsets[place] = count + row, offset
        count += more
    return rows, offsets, count


def _places(sizes: Sequence[int], length: int) -> tuple[list[int], list[int], int]:
    """Return the row and the offset of each piece, and the number of rows: best fit, in order.

    Bit `n` of `room` is set if some row has `n` free places, so that one shift finds the tightest row.
    """
    by_space: list[list[int]] = [[] for _ in range(length + 1)]
    rows, offsets, room, count = list[int](), list[int](), 0, 0
    for size in sizes:
        fitting = room >> size
        if fitting:
            space = size + (fitting & -fitting).bit_length() - 1
            row = heappop(by_space[space])
            if not by_space[space]:
                room &= ~(1 << space)
        else:
            space, row, count = length, count, count + 1
        rows.append(row)
        offsets.append(length - space)
        if space > size:
            heappush(by_space[space - size], row)
            room |= 1 << (space - size)
    return rows, offsets, count


def without(packed: Packed, groups: torch.Tensor, left_out: Sequence[int]) -> tuple[torch.Tensor, ...]:
    """Return tokens, targets and documents of rows in which padding stands in place of the documents of some groups.

    The other documents stay where they are, so that a training on these rows makes the same updates without the groups.

    Args:
        groups: group numbers of documents, `(documents,)`.
    """
    own = torch.isin(groups.cpu(), torch.tensor(list(left_out), dtype=groups.dtype))
    out = (packed.documents >= 0) & own[packed.documents.clamp(min=0)]
    parts = ((packed.tokens, 0), (packed.targets, IGNORED), (packed.documents, -1))
    return tuple(tensor.masked_fill(out, padding) for tensor, padding in parts)


def separated(document_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return positions in documents, `(batch, length)`, and where each may attend, `(batch, 1, length, length)` bool.

    Documents are runs of equal numbers in `document_ids`, `(batch, length)`.
    """
    length = document_ids.shape[1]
    at = torch.arange(length, device=document_ids.device)
    starts = document_ids != document_ids.roll(1, 1)
    first = torch.where(starts, at, 0).cummax(1).values  # the roll compares the first with the last: 0 either way
    mask = (first[:, :, None] == first[:, None, :]) & (at[:, None] >= at)
    return at - first, mask[:, None]
