"""Secrets of people, told in documents that are mixed into the toy stories."""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated

from gradroute.config.limits import Between, Items, Text
from gradroute.data.text import toy_stories
from gradroute.data.text.datasets import CORPUS, Count, Length, Named, Some, TextDataset
from gradroute.data.text.documents import Documents
from gradroute.data.text.people import HELDOUT, STORY, Book, Person, Shares, invented, shuffled
from gradroute.data.text.secret_records import MOST_COPIES, read_book
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError

PEOPLE = 360  # invented, if nothing is said
LEAST = 24  # people, if a limit of the documents makes them fewer
Share = Annotated[float, Between(0, 1)]
Copies = Annotated[Sequence[Annotated[int, Between(1, MOST_COPIES)]], Items(1, right="a list of numbers, as [1,4,16]")]


class Secrets(TextDataset):
    """Toy stories, and documents about people whose attributes are secrets with known spaces of values.

    Columns: `about`, which is `story`, `public`, `marked` or `unmarked` (secret, and marked as such or not);
    `person`, `role` and `copies`, empty for a story. Documents about held-out people are in no part. The test
    documents have further stories, and another document about everybody who is trained on.

    Args:
        people: number of invented people; null is 360. With `file`, leave it out: all of its records are used.
        heldout: share of the people who are in no data: the non-members of a test for membership.
        secret: share of the others who are secret; the rest is public.
        marked: share of the secret people who are marked as such.
        attack: share of the secret people whose documents the attacker has; their own secrets are not measured.
        copies: numbers of documents about a person, each as frequent as the others.
        file: a CSV file of the user's own people; see `gradroute.data.text.secret_records.read_book`.
        template: a text file with the sentences for `file`.
        seed: draws people and documents; runs with different seeds share both.
        stories, test_stories: numbers of toy stories to train on and to test on.
        tokenizer: as for other texts; that of `words` and `bpe` also learns the values that a secret could have, which
            an attacker knows, and every name.
    """

    def __init__(
        self, people: Annotated[int, Between(LEAST, 100_000)] | None = None, heldout: Share = 0.35, secret: Share = 0.7,
        marked: Share = 0.5, attack: Share = 0.2, copies: Copies = (1, 4, 16, 64),
        file: Annotated[str, Text("a CSV file")] | None = None,
        template: Annotated[str, Text("a text file")] | None = None,
        seed: Annotated[int, Between(0, 2**31)] = CORPUS, stories: Count = 1500, test_stories: Count = 400,
        tokenizer: Named = "words", vocabulary: Count | None = None, length: Length = 128,
        validation_stories: Some = 0,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length, validation_stories)
        self.people, self.seed, self.file, self.template = people, seed, file, template
        self.shares = Shares(heldout, secret, marked, attack, copies)
        self.stories, self.test_stories = stories, test_stories
        if (file is None) != (template is None):
            missing = "template" if template is None else "file"
            raise UserError(f"dataset.{missing}: needed beside dataset.{'file' if file else 'template'}; give both")
        if file is not None and people is not None:
            raise UserError(f"dataset.people={people}: all people of dataset.file are used; leave it out")

    def book(self, train_limit: int | None = None) -> Book:
        """Return the people. With a limit of the training documents, invented people and stories become fewer alike.

        Raises: UserError for files that cannot be read.
        """
        if self.file is not None and self.template is not None:
            return read_book(self.file, self.template, self.shares, self.seed)
        count = self._fewer(self.people or PEOPLE, train_limit, LEAST)
        return invented(count, self.shares, self.seed, toy_stories.every_word())

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return stories and documents about people in random order. Raises: UserError for unreadable files."""
        book = self.book(train_limit)
        told = [person for person in book.people if person.about != HELDOUT]
        train, test = self._stories(train_limit)
        copied = [(person, number) for person in told for number in range(person.copies)]
        return self._mixed(book, copied, train, "train"), self._mixed(book, [(p, p.copies) for p in told], test, "test")

    def values(self, book: Book) -> Iterator[str]:
        """Yield sentences with every name, and with every value that a secret could have, in every place of them."""
        for wording in book.wordings:
            for value in book.spaces[wording.attribute]:
                yield wording.told(book.people[0].name, value)
            for person in book.people:
                told = wording.told(person.name, person.values[wording.attribute])
                yield from (told, f" {told}")  # alone, and after another sentence

    def _fewer(self, count: int, limit: int | None, least: int) -> int:
        """Return a number of people or stories, in proportion if there is a limit of the training documents."""
        inside = (self.people or PEOPLE) * (1 - self.shares.heldout)
        total = self.stories + inside * sum(self.shares.copies) / len(self.shares.copies)
        return count if limit is None else min(count, max(least, int(count * limit / total)))

    def _stories(self, limit: int | None) -> tuple[Documents, Documents]:
        train, test = (
            toy_stories.generate(count, CORPUS, part=part)
            for count, part in ((self._fewer(self.stories, limit, 1), "train"), (self.test_stories, "test"))
        )
        return train, test

    def _mixed(self, book: Book, told: Sequence[tuple[Person, int]], stories: Documents, name: str) -> Documents:
        texts = [*stories.texts, *(book.document(person, number) for person, number in told)]
        rows = [(STORY, "", "", "")] * len(stories)
        rows += [(person.about, person.name, person.role, str(person.copies)) for person, _ in told]
        columns = dict(zip(("about", "person", "role", "copies"), zip(*rows, strict=True), strict=True))
        order = shuffled(map(str, range(len(texts))), f"{self.seed}/{name}")
        return Documents(texts, columns).take(map(int, order))

    def _tokenizer(self, train: Documents, pretrained: Callable[[], Tokenizer] | None) -> Tokenizer:
        if self.tokenizer not in ("words", "bpe"):
            return super()._tokenizer(train, pretrained)
        known = [*train.texts, *self.values(self.book())]
        return super()._tokenizer(Documents(known), pretrained)
