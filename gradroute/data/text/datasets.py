"""Data sets of documents: toy stories, your own files, and sets of the Hugging Face hub."""

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from gradroute.config.limits import MANY, Between, Text
from gradroute.data.base import Dataset
from gradroute.data.text import documents as reading
from gradroute.data.text import toy_stories
from gradroute.data.text.corpora import Texts, tokenized
from gradroute.data.text.documents import Documents
from gradroute.data.text.tokenizing import Tokenizer, load, train_bpe, train_words
from gradroute.errors import UserError

CORPUS = 0  # the seed of the toy stories: runs of several seeds share them
BPE = 2048  # tokens, where none are said
Count = Annotated[int, Between(1, MANY)]
Named = Annotated[str, Text("words, bpe, pretrained, or the path of a tokenizer.json")]
Length = Annotated[int, Between(2, MANY)]


class TextDataset(Dataset):
    """Documents, and how they become tokens. A subclass defines `documents` and passes the rest on.

    Args:
        tokenizer: `words`, `bpe`, the path of a tokenizer.json, or `pretrained`, which is the model's own.
        vocabulary: at most so many tokens; of a BPE exactly so many, 2048 if null.
        length: tokens of a row, in which documents are packed without seeing each other.
    """

    def __init__(self, tokenizer: Named = "bpe", vocabulary: Count | None = None, length: Length = 256) -> None:
        self.tokenizer, self.vocabulary, self.length = tokenizer, vocabulary, length

    @abstractmethod
    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """The documents to train on and to test on; no more than `train_limit` of the former will be used.

        Raises: UserError if they cannot be read.
        """

    def tensors(
        self, train_limit: int | None = None, test_limit: int | None = None,
        pretrained: Callable[[], Tokenizer] | None = None, **supplied: Any,
    ) -> Texts:  # fmt: skip
        """Read the documents and tokenize them; a limit keeps the first documents only.

        pretrained: gives the model's own tokenizer, if it has one.

        Raises: UserError for files that cannot be read, or settings that do not fit.
        """
        train, test = self.documents(train_limit)
        train, test = (
            part.take(range(min(limit, len(part)))) if limit else part
            for part, limit in ((train, train_limit), (test, test_limit))
        )
        return tokenized(train, test, self._tokenizer(train, pretrained), self.length)

    def _tokenizer(self, train: Documents, pretrained: Callable[[], Tokenizer] | None) -> Tokenizer:
        if self.tokenizer == "words":
            return train_words(train.texts, self.vocabulary)
        if self.tokenizer == "bpe":
            return train_bpe(train.texts, self.vocabulary or BPE)
        if self.vocabulary is not None:
            raise UserError(f"dataset.vocabulary={self.vocabulary}: the tokenizer {self.tokenizer} has its own; leave "
                            "it out")  # fmt: skip
        if self.tokenizer == "pretrained":
            if pretrained is None:
                raise UserError("dataset.tokenizer=pretrained: the model has no tokenizer of its own; use model=hf")
            return pretrained()
        return load(Path(self.tokenizer))


class ToyStories(TextDataset):
    """Short children's stories from a grammar inside the package, so that what is to be forgotten is known exactly.

    Args:
        concept: told in `share` of the stories; the metadata column of its name says yes or no.
        stories, test_stories: documents to train on and to test on.
    """

    def __init__(
        self, concept: str = "forest", share: Annotated[float, Between(0, 1)] = 0.2, stories: Count = 6000,
        test_stories: Count = 1500, tokenizer: Named = "words", vocabulary: Count | None = None, length: Length = 128,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length)
        self.concept, self.share, self.stories, self.test_stories = concept, share, stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Stories of two independent draws."""
        train, test = (
            toy_stories.generate(count, CORPUS, self.concept, self.share, part)
            for count, part in ((self.stories, "train"), (self.test_stories, "test"))
        )
        return train, test


class TextFiles(TextDataset):
    """Your own documents: a file or a folder of .txt, .jsonl or .parquet.

    Args:
        files: the file or folder.
        field: of a row, the text; its other fields become metadata.
        stories: documents to train on; null takes all but those to test on.
        test_stories: the last ones are to test on.
    """

    def __init__(
        self, files: Annotated[str, Text("a file or a folder")], field: str = "text", stories: Count | None = None,
        test_stories: Count = 500, tokenizer: Named = "bpe", vocabulary: Count | None = None, length: Length = 256,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length)
        self.files, self.field, self.stories, self.test_stories = files, field, stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """The first documents to train on, the last ones to test on."""
        wanted = None if self.stories is None else self.stories + self.test_stories
        return _divided(reading.read(self.files, self.field, wanted), self.test_stories, self.files)


class HubTexts(TextDataset):
    """A data set of the Hugging Face hub, such as TinyStories (Eldan and Li 2023). Needs `gradroute[hf]`.

    Args:
        hub: its name, or a local folder that `datasets` reads.
        split, test_split: splits to train on and to test on; null as `test_split` takes the last documents of `split`.
        field: of a row, the text; its other fields become metadata.
        stories, test_stories: the first documents of the splits; null as `stories` takes all.
    """

    def __init__(
        self, hub: Annotated[str, Text("the name of a data set")] = "roneneldan/TinyStories",
        split: Annotated[str, Text("the name of a split")] = "train",
        test_split: Annotated[str, Text("the name of a split")] | None = "validation", field: str = "text",
        stories: Count | None = 400_000, test_stories: Count = 5000, tokenizer: Named = "bpe",
        vocabulary: Count | None = None, length: Length = 256,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length)
        self.hub, self.split, self.test_split, self.field = hub, split, test_split, field
        self.stories, self.test_stories = stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """The first documents of both splits, or of one."""
        if self.test_split is None:
            wanted = None if self.stories is None else self.stories + self.test_stories
            found = reading.from_hub(self.hub, self.split, self.field, wanted)
            return _divided(found, self.test_stories, self.hub)
        first = min((n for n in (self.stories, train_limit) if n is not None), default=None)
        train = reading.from_hub(self.hub, self.split, self.field, first)
        test = reading.from_hub(self.hub, self.test_split, self.field, self.test_stories)
        if len(test) < self.test_stories:
            raise UserError(f"dataset '{self.hub}', split '{self.test_split}': {len(test)} documents, not "
                            f"dataset.test_stories={self.test_stories}; lower it")  # fmt: skip
        return train, test


def _divided(found: Documents, test_stories: int, where: str) -> tuple[Documents, Documents]:
    """All but the last documents, and these."""
    count = len(found) - test_stories
    if count < 1:
        raise UserError(f"{where}: {len(found)} documents, of which dataset.test_stories={test_stories} are to test "
                        "on; lower it")  # fmt: skip
    return found.take(range(count)), found.take(range(count, len(found)))
