"""Packing against a slow reference: nothing lost, nothing twice, nothing leaks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.text.packing import IGNORED, Corpus, pack
from gradroute.errors import UserError

corpora = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=12), min_size=1, max_size=8)


def slow_rows(documents: list[list[int]], length: int) -> list[list[tuple[int, int]]]:
    """Rows of (document, offset): each piece goes to the row whose free space is the tightest."""
    rows: list[list[tuple[int, int]]] = []
    for number, document in enumerate(documents):
        places = [(number, offset) for offset in range(len(document))]
        for cut in range(0, len(document), length):
            piece = places[cut : cut + length]
            fitting = [row for row in rows if length - len(row) >= len(piece)]
            best = max(fitting, key=len, default=None)
            if best is None:
                rows.append(list(piece))
            else:
                best += piece
    return rows


@settings(max_examples=100, deadline=None)
@given(documents=corpora, length=st.integers(2, 9))
def test_packing_equals_the_slow_reference(documents: list[list[int]], length: int) -> None:
    packed = pack(Corpus.of(documents), length)
    rows = slow_rows(documents, length)
    assert len(packed) == len(rows)
    found = []
    for tokens, targets, numbers in zip(packed.tokens, packed.targets, packed.documents, strict=True):
        row = [tuple(v) for v in zip(tokens.tolist(), targets.tolist(), numbers.tolist(), strict=True)]
        assert row[sum(n >= 0 for _, _, n in row) :] == [(0, IGNORED, -1)] * sum(n < 0 for _, _, n in row)
        found.append(tuple(v for v in row if v[2] >= 0))
    expected = []
    for row_places in rows:
        expected.append(
            tuple(
                (documents[n][i], documents[n][i + 1] if i + 1 < len(documents[n]) else IGNORED, n)
                for n, i in row_places
            )
        )
    assert found == expected


@settings(max_examples=100, deadline=None)
@given(documents=corpora, length=st.integers(2, 9))
def test_every_token_is_there_once_and_is_found_again(documents: list[list[int]], length: int) -> None:
    corpus = Corpus.of(documents)
    packed = pack(corpus, length)
    assert sorted(packed.index[packed.index >= 0].tolist()) == list(range(len(corpus.tokens)))
    assert torch.equal(packed.gathered(packed.tokens), corpus.tokens)
    assert torch.equal(packed.gathered(packed.documents), corpus.documents)
    values = torch.rand(len(corpus.tokens), 2)
    spread = packed.spread(values)
    assert spread.shape == (len(packed), length, 2) and torch.equal(packed.gathered(spread), values)
    assert not spread[packed.index < 0].any()
    inside = [d[i : i + length] for d in documents for i in range(0, len(d), length)]
    assert sum(len(piece) for piece in inside) == len(corpus.tokens)
    assert int((packed.targets == IGNORED).sum()) == (packed.index < 0).sum() + len(documents)


def test_documents_that_fit_are_in_one_piece_and_the_end_is_their_last_token() -> None:
    corpus = Corpus.of([[1, 2, 3], [4, 5], [6], [7, 8, 9, 1, 2]], end=0)
    packed = pack(corpus, 6)
    assert packed.tokens.tolist() == [[1, 2, 3, 0, 6, 0], [4, 5, 0, 0, 0, 0], [7, 8, 9, 1, 2, 0]]
    assert packed.documents.tolist() == [[0, 0, 0, 0, 2, 2], [1, 1, 1, -1, -1, -1], [3] * 6]
    assert packed.targets.tolist() == [
        [2, 3, 0, IGNORED, 0, IGNORED],
        [5, 0, IGNORED, IGNORED, IGNORED, IGNORED],
        [8, 9, 1, 2, 0, IGNORED],
    ]


def test_a_target_is_kept_where_a_document_is_cut() -> None:
    packed = pack(Corpus.of([[1, 2, 3, 4, 5]]), 3)
    assert packed.tokens.tolist() == [[1, 2, 3], [4, 5, 0]] and packed.targets.tolist() == [[2, 3, 4], [5, -100, -100]]


def test_the_value_of_a_token_belongs_to_the_position_before_it() -> None:
    corpus = Corpus.of([[1, 2, 3], [4], [5, 6]])
    values = torch.tensor([10.0, 20, 30, 40, 50, 60])
    assert corpus.predicting(values).tolist() == [20, 30, 0, 0, 60, 0]
    assert corpus.predicting(corpus.tokens).tolist() == [2, 3, 0, 0, 6, 0]
    assert corpus.document(2).tolist() == [5, 6]
    packed = pack(corpus, 6)
    targets = packed.targets.clamp(min=0)
    assert torch.equal(packed.spread(corpus.predicting(corpus.tokens)), targets)


def test_packing_is_fast_enough_to_be_done_before_every_run() -> None:
    packed = pack(Corpus(torch.zeros(400_000, dtype=torch.int64), torch.full((4000,), 100)), 256)
    assert len(packed) == 2000


def test_mistakes_are_refused() -> None:
    with pytest.raises(UserError, match="document 1 has no token; leave it out"):
        Corpus.of([[1], []])
    with pytest.raises(UserError, match="document 0 has no token"):
        Corpus.of([])
    with pytest.raises(UserError, match="packing: length=1: must be 2 or more"):
        pack(Corpus.of([[1]]), 1)
