"""The documents of a language model's data set, as tokens in packed rows."""

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path

from gradroute.errors import UserError, unknown
from gradroute.language_schema import TextConfig
from gradroute.schema import DatasetConfig
from gradroute.text import documents as reading
from gradroute.text import toy_stories
from gradroute.text.documents import Documents
from gradroute.text.packing import Corpus, Packed, pack
from gradroute.text.tokenizing import Tokenizer, load, train_bpe, train_words

NAMES = ("toy_stories", "text")
CORPUS = 0  # the seed of the toy stories: runs of several seeds share them
BPE = 2048  # tokens, where none are said


@dataclass(frozen=True)
class Part:
    """Documents, their tokens, and the rows that they are packed in."""

    documents: Documents
    corpus: Corpus
    packed: Packed


@dataclass(frozen=True)
class Texts:
    """A data set of documents: `train`, `test`, and the tokenizer, which was trained on `train` alone if on any."""

    train: Part
    test: Part
    tokenizer: Tokenizer
    length: int

    @property
    def sha256(self) -> str:
        """The hash of all documents and of the tokenizer."""
        hashes = (self.train.documents.sha256, self.test.documents.sha256, self.tokenizer.sha256)
        return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def load_texts(config: DatasetConfig, train_limit: int | None = None, test_limit: int | None = None) -> Texts:
    """Read or write the documents and make their tokens; a limit keeps the first documents only.

    Raises: UserError for an unknown name, files that cannot be read, or settings that do not fit.
    """
    text = config.text
    if text is None or config.name not in NAMES:
        raise unknown("dataset of a language model:", config.name, NAMES)
    train, test = _stories(text) if config.name == "toy_stories" else _files(text)
    train, test = (
        part.take(range(min(limit, len(part)))) if limit else part
        for part, limit in ((train, train_limit), (test, test_limit))
    )
    tokenizer = _tokenizer(text, train)
    parts = []
    for documents in (train, test):
        corpus = Corpus.of(tokenizer.encode(documents.texts), tokenizer.end)
        parts.append(Part(documents, corpus, pack(corpus, text.length)))
    return Texts(parts[0], parts[1], tokenizer, text.length)


def _stories(text: TextConfig) -> tuple[Documents, Documents]:
    if text.files is not None:
        raise UserError(f"dataset.text.files={text.files}: toy stories are written, not read; use dataset=text")
    if text.stories is None:
        raise UserError("dataset.text.stories=null: give how many toy stories are to be written")
    train, test = (
        toy_stories.generate(count, CORPUS, text.concept, text.share, part)
        for count, part in ((text.stories, "train"), (text.test_stories, "test"))
    )
    return train, test


def _files(text: TextConfig) -> tuple[Documents, Documents]:
    """The first documents to train on, the next ones to test on."""
    if text.files is None:
        raise UserError("dataset=text: give dataset.text.files, a file or a folder of .txt, .jsonl or .parquet")
    wanted = None if text.stories is None else text.stories + text.test_stories
    found = reading.read(text.files, text.field, wanted)
    train = len(found) - text.test_stories
    if train < 1:
        raise UserError(f"{text.files}: {len(found)} documents, of which dataset.text.test_stories={text.test_stories} "
                        "are to test on; lower it")  # fmt: skip
    return found.take(range(train)), found.take(range(train, len(found)))


def _tokenizer(text: TextConfig, train: Documents) -> Tokenizer:
    if text.tokenizer == "words":
        return train_words(train.texts, text.vocabulary)
    if text.tokenizer == "bpe":
        return train_bpe(train.texts, text.vocabulary or BPE)
    if text.vocabulary is not None:
        raise UserError(f"dataset.text.vocabulary={text.vocabulary}: the tokenizer {text.tokenizer} has its own; "
                        "leave it out")  # fmt: skip
    return load(Path(text.tokenizer))


def some(part: Part, numbers: list[int], length: int) -> Part:
    """Some of the documents, packed by themselves."""
    corpus = Corpus.of([part.corpus.document(number).tolist() for number in numbers])
    return replace(part, documents=part.documents.take(numbers), corpus=corpus, packed=pack(corpus, length))
