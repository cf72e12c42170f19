"""The documents of a language model's data set, as tokens in packed rows."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from gradroute.config.language_schema import TextConfig
from gradroute.config.schema import DatasetConfig
from gradroute.data.text import documents as reading
from gradroute.data.text import toy_stories
from gradroute.data.text.documents import Documents
from gradroute.data.text.packing import Corpus, Packed, pack
from gradroute.data.text.tokenizing import Tokenizer, load, train_bpe, train_words
from gradroute.errors import UserError, unknown

NAMES = ("toy_stories", "text", "tinystories")
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


def load_texts(
    config: DatasetConfig, train_limit: int | None = None, test_limit: int | None = None,
    pretrained: Callable[[], Tokenizer] | None = None,
) -> Texts:  # fmt: skip
    """Read or write the documents and make their tokens; a limit keeps the first documents only.

    pretrained: gives the model's own tokenizer, if it has one.

    Raises: UserError for an unknown name, files that cannot be read, or settings that do not fit.
    """
    text = config.text
    if text is None or config.name not in NAMES:
        raise unknown("dataset of a language model:", config.name, NAMES)
    train, test = _stories(text) if config.name == "toy_stories" else _documents(text, train_limit)
    train, test = (
        part.take(range(min(limit, len(part)))) if limit else part
        for part, limit in ((train, train_limit), (test, test_limit))
    )
    tokenizer = _tokenizer(text, train, pretrained)
    parts = []
    for documents in (train, test):
        corpus = Corpus.of(tokenizer.encode(documents.texts), tokenizer.end)
        parts.append(Part(documents, corpus, pack(corpus, text.length)))
    return Texts(parts[0], parts[1], tokenizer, text.length)


def _stories(text: TextConfig) -> tuple[Documents, Documents]:
    for key in ("files", "hub"):
        if (given := getattr(text, key)) is not None:
            right = "dataset=text" if key == "files" else "dataset=tinystories"
            raise UserError(f"dataset.text.{key}={given}: toy stories are written, not read; use {right}")
    if text.stories is None:
        raise UserError("dataset.text.stories=null: give how many toy stories are to be written")
    train, test = (
        toy_stories.generate(count, CORPUS, text.concept, text.share, part)
        for count, part in ((text.stories, "train"), (text.test_stories, "test"))
    )
    return train, test


def _documents(text: TextConfig, limit: int | None) -> tuple[Documents, Documents]:
    """The first documents to train on, the next ones, or another split's, to test on; `limit` may save reading."""
    if (text.files is None) == (text.hub is None):
        raise UserError("dataset.text: give either files, a file or a folder of .txt, .jsonl or .parquet, or hub, the "
                        "name of a data set")  # fmt: skip
    if text.hub is not None and text.test_split is not None:
        first = min((n for n in (text.stories, limit) if n is not None), default=None)
        train = reading.from_hub(text.hub, text.split, text.field, first)
        test = reading.from_hub(text.hub, text.test_split, text.field, text.test_stories)
        if len(test) < text.test_stories:
            raise UserError(f"dataset '{text.hub}', split '{text.test_split}': {len(test)} documents, not "
                            f"dataset.text.test_stories={text.test_stories}; lower it")  # fmt: skip
        return train, test
    wanted = None if text.stories is None else text.stories + text.test_stories
    where: str
    if text.hub is not None:
        where, found = text.hub, reading.from_hub(text.hub, text.split, text.field, wanted)
    else:
        where = str(text.files)
        found = reading.read(where, text.field, wanted)
    count = len(found) - text.test_stories
    if count < 1:
        raise UserError(f"{where}: {len(found)} documents, of which dataset.text.test_stories={text.test_stories} "
                        "are to test on; lower it")  # fmt: skip
    return found.take(range(count)), found.take(range(count, len(found)))


def _tokenizer(text: TextConfig, train: Documents, pretrained: Callable[[], Tokenizer] | None) -> Tokenizer:
    if text.tokenizer == "words":
        return train_words(train.texts, text.vocabulary)
    if text.tokenizer == "bpe":
        return train_bpe(train.texts, text.vocabulary or BPE)
    if text.vocabulary is not None:
        raise UserError(f"dataset.text.vocabulary={text.vocabulary}: the tokenizer {text.tokenizer} has its own; "
                        "leave it out")  # fmt: skip
    if text.tokenizer == "pretrained":
        if pretrained is None:
            raise UserError("dataset.text.tokenizer=pretrained: the model has no tokenizer of its own; use model=hf")
        return pretrained()
    return load(Path(text.tokenizer))


def some(part: Part, numbers: list[int], length: int) -> Part:
    """Some of the documents, packed by themselves."""
    corpus = Corpus.of([part.corpus.document(number).tolist() for number in numbers])
    return replace(part, documents=part.documents.take(numbers), corpus=corpus, packed=pack(corpus, length))
