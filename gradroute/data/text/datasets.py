"""Data sets of documents: toy stories, the user's own files, and data sets of the Hugging Face hub."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from gradroute.config.limits import MANY, Between, Text
from gradroute.data.base import Dataset
from gradroute.data.columns import Folder, read_columns
from gradroute.data.text import documents as reading
from gradroute.data.text import toy_stories
from gradroute.data.text.corpora import Texts, tokenized
from gradroute.data.text.documents import Documents
from gradroute.data.text.tokenizing import Tokenizer, load, train_bpe, train_words
from gradroute.errors import UserError

CORPUS = 0  # the seed of the toy stories; runs with different seeds share them
BPE = 2048  # tokens, if `vocabulary` is null
Count = Annotated[int, Between(1, MANY)]
Some = Annotated[int, Between(0, MANY)]
Named = Annotated[str, Text("words, bpe, pretrained, or the path of a tokenizer.json")]
Length = Annotated[int, Between(2, MANY)]


class TextDataset(Dataset):
    """Documents and their tokenizer. A subclass defines `documents` and passes these arguments on.

    Args:
        tokenizer: `words`, `bpe`, the path of a tokenizer.json, or `pretrained`, which is the model's own.
        vocabulary: the maximum number of tokens; null is 2048 for `bpe` and no limit for `words`.
        length: tokens per row. Documents that are packed into one row do not see each other.
        validation_stories: how many of the test documents, the last ones, are validated on and not tested on.
        metadata: a folder with `train.csv` and `test.csv`: a header, and a line for each document in the data's order.
    """

    def __init__(
        self, tokenizer: Named = "bpe", vocabulary: Count | None = None, length: Length = 256,
        validation_stories: Some = 0, metadata: Folder = None,
    ) -> None:  # fmt: skip
        self.tokenizer, self.vocabulary, self.length = tokenizer, vocabulary, length
        self.validation_stories, self.metadata = validation_stories, metadata

    @abstractmethod
    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return the training and the test documents; only the first `train_limit` training documents are used.

        Raises: UserError if they cannot be read.
        """

    def tensors(
        self, train_limit: int | None = None, test_limit: int | None = None,
        pretrained: Callable[[], Tokenizer] | None = None, **supplied: Any,
    ) -> Texts:  # fmt: skip
        """Read the documents and tokenize them; a limit keeps only the first documents, also of those to validate on.

        pretrained: returns the model's own tokenizer; None if it has none.

        Raises: UserError for unreadable files, or settings that do not fit together.
        """
        train, given = (
            self._described(part, name)
            for part, name in zip(self.documents(train_limit), ("train", "test"), strict=True)
        )
        test, validation = self._held_out(given)
        train, test, validation = (
            part.take(range(min(limit, len(part)))) if limit else part
            for part, limit in ((train, train_limit), (test, test_limit), (validation, test_limit))
        )
        return tokenized(train, test, self._tokenizer(train, pretrained), self.length, validation)

    def _described(self, part: Documents, name: str) -> Documents:
        """Add the columns of the metadata; there may be lines for documents beyond those that are read."""
        return Documents(part.texts, {**part.columns, **read_columns(self.metadata, name, len(part), "document", True)})

    def _held_out(self, given: Documents) -> tuple[Documents, Documents]:
        """Divide the test documents into those to test on and those to validate on."""
        count = len(given) - self.validation_stories
        if count < 1:
            raise UserError(f"dataset.validation_stories={self.validation_stories}: leaves none of {len(given)} test "
                            "documents to test on; lower it, or raise dataset.test_stories")  # fmt: skip
        return given.take(range(count)), given.take(range(count, len(given)))

    def _tokenizer(self, train: Documents, pretrained: Callable[[], Tokenizer] | None) -> Tokenizer:
        if self.tokenizer == "words":
            return train_words(train.texts, self.vocabulary)
        if self.tokenizer == "bpe":
            return train_bpe(train.texts, self.vocabulary or BPE)
        if self.vocabulary is not None:
            raise UserError(f"dataset.vocabulary={self.vocabulary}: the tokenizer {self.tokenizer} has its own "
                            "vocabulary; leave it out")  # fmt: skip
        if self.tokenizer == "pretrained":
            if pretrained is None:
                raise UserError("dataset.tokenizer=pretrained: the model has no tokenizer of its own; use model=hf")
            return pretrained()
        return load(Path(self.tokenizer))


class ToyStories(TextDataset):
    """Short children's stories from a grammar in the package, so that it is known exactly what a model should forget.

    Args:
        concept: what a share `share` of the stories tells of; the metadata column of that name is yes or no.
        stories, test_stories: numbers of training and of test documents.
        mixed: share of a concept's things in whose place an ordinary object stands.
    """

    def __init__(
        self, concept: str = "forest", share: Annotated[float, Between(0, 1)] = 0.2, stories: Count = 6000,
        test_stories: Count = 1500, tokenizer: Named = "words", vocabulary: Count | None = None, length: Length = 128,
        validation_stories: Some = 0, mixed: Annotated[float, Between(0, 1)] = 0.0, metadata: Folder = None,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length, validation_stories, metadata)
        self.concept, self.share, self.stories, self.test_stories = concept, share, stories, test_stories
        self.mixed = mixed

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return stories of two independent draws."""
        train, test = (
            toy_stories.generate(count, CORPUS, self.concept, self.share, part, self.mixed)
            for count, part in ((self.stories, "train"), (self.test_stories, "test"))
        )
        return train, test


class TextFiles(TextDataset):
    """The user's own documents: a file or a folder of .txt, .jsonl or .parquet.

    Args:
        files: the file or folder.
        field: the field of a row with the text; the other fields become metadata.
        stories: number of training documents; null takes all but the test documents.
        test_stories: number of test documents, the last ones.
    """

    def __init__(
        self, files: Annotated[str, Text("a file or a folder")], field: str = "text", stories: Count | None = None,
        test_stories: Count = 500, tokenizer: Named = "bpe", vocabulary: Count | None = None, length: Length = 256,
        validation_stories: Some = 0, metadata: Folder = None,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length, validation_stories, metadata)
        self.files, self.field, self.stories, self.test_stories = files, field, stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return the first documents to train on, and the last ones to test on."""
        wanted = None if self.stories is None else self.stories + self.test_stories
        return _divided(reading.read(self.files, self.field, wanted), self.test_stories, self.files)


class HubTexts(TextDataset):
    """A data set of the Hugging Face hub, such as TinyStories (Eldan and Li 2023). Needs `gradroute[hf]`.

    Args:
        hub: its name, or a local folder that `datasets` reads.
        split, test_split: splits to train on and to test on; null as `test_split` takes the last documents of `split`.
        field: the field of a row with the text; the other fields become metadata.
        stories, test_stories: numbers of documents, the first of each split; null as `stories` takes all.
    """

    def __init__(
        self, hub: Annotated[str, Text("the name of a data set")] = "roneneldan/TinyStories",
        split: Annotated[str, Text("the name of a split")] = "train",
        test_split: Annotated[str, Text("the name of a split")] | None = "validation", field: str = "text",
        stories: Count | None = 400_000, test_stories: Count = 5000, tokenizer: Named = "bpe",
        vocabulary: Count | None = None, length: Length = 256, validation_stories: Some = 0, metadata: Folder = None,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length, validation_stories, metadata)
        self.hub, self.split, self.test_split, self.field = hub, split, test_split, field
        self.stories, self.test_stories = stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return the first documents of both splits, or divide those of one."""
        if self.test_split is None:
            wanted = None if self.stories is None else self.stories + self.test_stories
            found = reading.from_hub(self.hub, self.split, self.field, wanted)
            return _divided(found, self.test_stories, self.hub)
        first = min((n for n in (self.stories, train_limit) if n is not None), default=None)
        train = reading.from_hub(self.hub, self.split, self.field, first)
        test = reading.from_hub(self.hub, self.test_split, self.field, self.test_stories)
        if len(test) < self.test_stories:
            raise UserError(f"dataset '{self.hub}', split '{self.test_split}': has {len(test)} documents, not "
                            f"dataset.test_stories={self.test_stories}; lower it")  # fmt: skip
        return train, test


def _divided(found: Documents, test_stories: int, where: str) -> tuple[Documents, Documents]:
    """Return all but the last `test_stories` documents, and the last ones."""
    count = len(found) - test_stories
    if len(found) == 1:
        raise UserError(f"{where}: has one document; give two or more, since one is needed to test on")
    if count < 1:
        raise UserError(f"{where}: has {len(found)} documents, too few for dataset.test_stories={test_stories}; "
                        "lower it")  # fmt: skip
    return found.take(range(count)), found.take(range(count, len(found)))
