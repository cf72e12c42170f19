"""Tokenize the documents of a data set and pack them into rows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from gradroute.data.text.documents import Documents
from gradroute.data.text.packing import Corpus, Packed, pack
from gradroute.data.text.tokenizing import Tokenizer


@dataclass(frozen=True)
class Part:
    """Documents, their tokens, and the rows into which they are packed."""

    documents: Documents
    corpus: Corpus
    packed: Packed


@dataclass(frozen=True)
class Texts:
    """A data set of documents, and the tokenizer, which was trained on `train` alone if at all.

    validation: documents to choose by, which are neither trained nor tested on; None if there are none.
    """

    train: Part
    test: Part
    tokenizer: Tokenizer
    length: int
    validation: Part | None = None

    @property
    def sha256(self) -> str:
        """The hash of all documents and of the tokenizer."""
        hashes = [self.train.documents.sha256, self.test.documents.sha256, self.tokenizer.sha256]
        hashes += [self.validation.documents.sha256] if self.validation else []
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def tokenized(
    train: Documents, test: Documents, tokenizer: Tokenizer, length: int, validation: Documents | None = None
) -> Texts:
    """Tokenize all parts and pack them into rows of `length` tokens."""
    parts = []
    for documents in (train, test, *([validation] if validation else [])):
        corpus = Corpus.of(tokenizer.encode(documents.texts), tokenizer.end)
        parts.append(Part(documents, corpus, pack(corpus, length)))
    return Texts(parts[0], parts[1], tokenizer, length, *parts[2:])


def packed_by(texts: Texts, kinds: torch.Tensor) -> Texts:
    """Return the same texts with training documents of different kinds, `(documents,)`, in rows of their own."""
    train = texts.train
    return replace(texts, train=replace(train, packed=pack(train.corpus, texts.length, kinds)))


def some(part: Part, numbers: Sequence[int], length: int) -> Part:
    """Return the documents with these numbers, packed by themselves."""
    corpus = Corpus.of([part.corpus.document(number).tolist() for number in numbers])
    return replace(part, documents=part.documents.take(numbers), corpus=corpus, packed=pack(corpus, length))
