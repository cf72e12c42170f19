"""A second language: some documents with every word replaced by an invented one, so that grammar is shared and words
are not ("fake English"; K et al. 2020, arXiv 1912.07840).

Every word of the documents has one invented translation. Punctuation, numbers, case and the order of words stay.
"""

import hashlib
import random
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated

from gradroute.config.limits import Between, Text
from gradroute.data.columns import Folder
from gradroute.data.text.datasets import CORPUS, Count, Length, Named, Some, TextDataset, TextFiles, ToyStories
from gradroute.data.text.documents import Documents

COLUMN, FIRST, SECOND = "language", "first", "second"
WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # letters of any script, with inner apostrophes
CLUSTERS = ("bl", "br", "cl", "cr", "dr", "fl", "fr", "gl", "gr", "pl", "pr", "sh", "sk", "sl", "st", "th", "tr")
ONSETS = (*"bcdfghjklmnprstvwz", *CLUSTERS)
VOWELS = ("a", "e", "i", "o", "u", "ai", "ea", "ee", "oa", "oo")
CODAS = ("", "", "", "", *"bdgklmnprst")
SYLLABLES = 4  # at most


def _candidates(word: str, seed: int) -> Iterator[str]:
    """Yield invented words for a word without end; longer words get more syllables, and so do later attempts."""
    attempt, size = 0, min(SYLLABLES, 1 + len(word) // 4)
    while True:
        digest = hashlib.sha256(f"{seed}/{attempt}/{word}".encode()).digest()
        syllables = min(SYLLABLES, size + attempt // 8)
        parts = [(digest[3 * i], digest[3 * i + 1], digest[3 * i + 2]) for i in range(syllables)]
        yield "".join(ONSETS[a % len(ONSETS)] + VOWELS[b % len(VOWELS)] + CODAS[c % len(CODAS)] for a, b, c in parts)
        attempt += 1


def lexicon(words: Iterable[str], seed: int = 0) -> dict[str, str]:
    """Return an invented word for each word, in lower case: one to one, and never one of the words."""
    real = sorted({word.lower() for word in words})
    used, found = set(real), dict[str, str]()
    for word in real:
        found[word] = next(invented for invented in _candidates(word, seed) if invented not in used)
        used.add(found[word])
    return found


def translated(text: str, words: Mapping[str, str]) -> str:
    """Replace every word of a text by its translation, in lower case, upper case or capitalised as the word was."""

    def translate(match: re.Match[str]) -> str:
        word = match[0]
        found = words[word.lower()]
        if word.isupper() and len(word) > 1:
            return found.upper()
        return found.capitalize() if word[0].isupper() else found

    return WORD.sub(translate, text)


class SecondLanguage(TextDataset):
    """Documents of which a random share is in a second, invented language; the metadata column `language` says which.

    Args:
        share: share of the documents in the second language, of those to train on and of those to test on.
        seed: seed of the invented words and of the choice of documents; runs with different seeds share both.
        files: the user's own documents, a file or a folder of .txt, .jsonl or .parquet; null takes the toy stories.
        field: the field of a row with the text.
        stories: number of training documents; null is 6,000 toy stories, or all documents but the test documents.
        test_stories: number of test documents; of the user's own, the last ones.
        tokenizer: as for other texts; null is `words` for the toy stories and `bpe` for the user's own documents.
    """

    def __init__(
        self, share: Annotated[float, Between(0, 1)] = 0.25, seed: Annotated[int, Between(0, 2**31)] = CORPUS,
        files: Annotated[str, Text("a file or a folder")] | None = None, field: str = "text",
        stories: Count | None = None, test_stories: Count = 1500, tokenizer: Named | None = None,
        vocabulary: Count | None = None, length: Length = 128, validation_stories: Some = 0, metadata: Folder = None,
    ) -> None:  # fmt: skip
        kind = tokenizer or ("words" if files is None else "bpe")
        super().__init__(kind, vocabulary, length, validation_stories, metadata)
        self.share, self.seed, self.files, self.field = share, seed, files, field
        self.stories, self.test_stories = stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return the documents to train on and to test on. Raises: UserError for files that cannot be read."""
        parts = self._originals()
        words = lexicon((word for part in parts for text in part.texts for word in WORD.findall(text)), self.seed)
        train, test = (self._mixed(part, words, name) for name, part in zip(("train", "test"), parts, strict=True))
        return train, test

    def _originals(self) -> tuple[Documents, Documents]:
        if self.files is None:
            return ToyStories(stories=self.stories or 6000, test_stories=self.test_stories).documents(None)
        return TextFiles(self.files, self.field, self.stories, self.test_stories).documents(None)

    def _mixed(self, part: Documents, words: Mapping[str, str], name: str) -> Documents:
        """Translate a random share of the documents."""
        draw = random.Random(f"{name}/{self.seed}").random  # not torch's, whose same seeds choose which labels are kept
        second = [draw() < self.share for _ in part.texts]
        texts = [translated(text, words) if own else text for text, own in zip(part.texts, second, strict=True)]
        return Documents(texts, {**part.columns, COLUMN: [SECOND if own else FIRST for own in second]})
