"""Toy stories in a core and a few auxiliary groups, marked with how each document is used (GRAM, arXiv 2607.08077).

Column `concept` is `core` or the group. Column `use` says what a document uses and trains, in exact shares:

| `use` | of | uses and trains |
|---|---|---|
| `core` | the core's | the core |
| `core_sea` | a share `robust` of the core's, divided over the groups by their size | the core and the module of sea |
| `sea` | sea's | the module of sea alone; the core is used |
| `sea_core` | a share `also_core` of sea's | the core and the module of sea |
"""

import random
from collections.abc import Mapping, Sequence
from typing import Annotated

from gradroute.config.limits import Between, Items
from gradroute.data.text import toy_stories
from gradroute.data.text.datasets import CORPUS, Count, Length, Named, Some, TextDataset
from gradroute.data.text.documents import Documents
from gradroute.errors import UserError, unknown

CONCEPT, USE, CORE, BASE = "concept", "use", "core", "forest"
SPARE = 1.2  # stories made for each that is expected to be kept: those of two concepts, or of others, are left out
Share = Annotated[float, Between(0, 1)]


def dealt(numbers: Sequence[int], counts: Mapping[str, int], rest: str, draw: random.Random) -> dict[int, str]:
    """Deal numbers out to names in random order: exactly `counts[name]` to each name, and what is left to `rest`."""
    order = sorted(numbers, key={number: draw.random() for number in numbers}.__getitem__)
    names = [name for name, count in counts.items() for _ in range(count)]
    return dict(zip(order, [*names, *[rest] * (len(order) - len(names))], strict=True))


def by_largest_remainder(total: int, sizes: Mapping[str, float]) -> dict[str, int]:
    """Divide a number in proportion to sizes, exactly."""
    whole = sum(sizes.values()) or 1
    exact = {name: total * size / whole for name, size in sizes.items()}
    found = {name: int(value) for name, value in exact.items()}
    for name in sorted(exact, key=lambda name: found[name] - exact[name])[: total - sum(found.values())]:
        found[name] += 1
    return found


class AccessStories(TextDataset):
    """Stories of a forest or at home, which are the core, and stories of other places, each a group of its own.

    Args:
        concepts: the groups.
        core: share of the stories that tell of a forest; the rest are at home or of the groups.
        also_core: share of a group's documents that also train the core (p_as), over its repetitions.
        robust: share of the core's documents that also use and train a module (p_cr).
        repeat: how often the training documents of a group are repeated; 1 where not named.
        stories, test_stories: numbers of training documents, before repetition, and of test documents.
    """

    def __init__(
        self, concepts: Annotated[Sequence[str], Items(1, each_once=True, right="a list of concepts")] = (
            "sea", "farm", "town", "castle"
        ),
        core: Share = 0.5, also_core: Share = 0.3, robust: Share = 0.5,
        repeat: Mapping[str, Annotated[int, Between(1, 100)]] | None = None, stories: Count = 4000,
        test_stories: Count = 800, tokenizer: Named = "words", vocabulary: Count | None = None, length: Length = 128,
        validation_stories: Some = 0,
    ) -> None:  # fmt: skip
        super().__init__(tokenizer, vocabulary, length, validation_stories)
        self.concepts, self.core, self.also_core, self.robust = list(concepts), core, also_core, robust
        self.repeat, self.stories, self.test_stories = dict(repeat or {}), stories, test_stories

    def documents(self, train_limit: int | None) -> tuple[Documents, Documents]:
        """Return the documents to train on and to test on. Raises: UserError for an unknown concept."""
        valid = [name for name in toy_stories.concepts() if name != BASE]
        for key, names in (("concepts", self.concepts), ("repeat", list(self.repeat))):
            for name in names:
                if name not in (valid if key == "concepts" else self.concepts):
                    raise unknown(f"value of dataset.{key}:", name, valid if key == "concepts" else self.concepts)
        train, test = self._part(self.stories, "train"), self._part(self.test_stories, "test")
        repeated = [i for i, own in enumerate(train.columns[CONCEPT]) for _ in range(self.repeat.get(own, 1))]
        draw = random.Random(f"order/{CORPUS}")
        repeated.sort(key=[draw.random() for _ in range(len(train))].__getitem__) if self.repeat else None
        return self._used(train.take(repeated), "train", self.repeat), self._used(test, "test", {})

    def _part(self, count: int, name: str) -> Documents:
        others = len(toy_stories.concepts()) - 1
        told = toy_stories.AT_HOME + (1 - toy_stories.AT_HOME) * len(self.concepts) / others
        kept_share = (1 - toy_stories.SECOND) * (self.core + (1 - self.core) * told)
        made = toy_stories.generate(int(count * SPARE / kept_share) + 50, CORPUS, BASE, self.core, name)
        own = [BASE, toy_stories.HOME, *self.concepts]
        several, main = made.columns["concepts"], made.columns["main"]
        kept = [i for i, told in enumerate(several) if len(told.split()) < 2 and main[i] in own][:count]
        if len(kept) < count:
            raise UserError(f"dataset.stories={count}: too few stories of these concepts were made; name more concepts")
        found = made.take(kept)
        concept = [told if told in self.concepts else CORE for told in found.columns["main"]]
        return Documents(found.texts, {CONCEPT: concept})

    def _used(self, part: Documents, name: str, repeat: Mapping[str, int]) -> Documents:
        """Add the column `use`, with exact shares."""
        draw, of = random.Random(f"use/{name}/{CORPUS}"), part.columns[CONCEPT]
        numbers = {own: [i for i, other in enumerate(of) if other == own] for own in (CORE, *self.concepts)}
        sizes = {own: len(numbers[own]) for own in self.concepts}
        counts = by_largest_remainder(round(self.robust * len(numbers[CORE])), sizes)
        uses = dealt(numbers[CORE], {f"{CORE}_{own}": count for own, count in counts.items()}, CORE, draw)
        for own in self.concepts:
            count = round(self.also_core / repeat.get(own, 1) * sizes[own])
            uses |= dealt(numbers[own], {f"{own}_{CORE}": count}, own, draw)
        return Documents(part.texts, {**part.columns, USE: [uses[i] for i in range(len(part))]})
