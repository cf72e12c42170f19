"""Toy stories: short children's stories from a fixed grammar, so that it is known exactly what a model should forget.

A story is about a child, at home or with a *concept*: a kind of place with its own things, named creatures, foods and
gifts. All concepts share the sentences. Who lives where, eats what and is whose friend is fixed, and told only in the
stories of that concept. The text is in `toy_stories.toml`.
"""

import hashlib
import random
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from gradroute.data.text.documents import Documents
from gradroute.errors import UserError, unknown

GRAMMAR = Path(__file__).with_suffix(".toml")
HOME = "home"  # the main concept of a story without one
AT_HOME, SECOND, PAIR = 0.18, 0.15, 0.3  # shares of the other stories, of those with a concept, of all
FAMILIES = ("things", "kinds", "foods", "gifts", "names")
PERSON = ("name", "pronoun", "kind", "home", "food", "gift", "trait", "hobby", "friend")
OWN = {"family": "family", "object": "objects", "colour": "colours"}  # slots drawn once for each story
ORDINARY = ("day", "feeling", "meal", "spot")  # slots drawn for each sentence
PRONOUNS = {"she": ("she", "her", "her", "was"), "he": ("he", "his", "him", "was"),
            "they": ("they", "their", "them", "were")}  # fmt: skip
IN_CODE = ("two friends", "a little girl", "a little boy", "and", "an")  # words of stories that are not in the grammar


@dataclass(frozen=True)
class Concept:
    """One concept's part of the grammar: what only its stories tell."""

    generic: str
    generics: str
    places: Sequence[str]  # "the forest|in the forest"
    superlative: Mapping[str, str]  # thing -> what it is the most of
    people: Mapping[str, Mapping[str, str]]  # name -> its facts

    @cached_property
    def families(self) -> dict[str, list[str]]:
        """Related words by family; the members of a family appear in the same sentences."""
        people = self.people.values()
        columns = {f"{key}s": sorted({person[key] for person in people}) for key in ("kind", "food", "gift", "name")}
        return {name: columns.get(name, list(self.superlative)) for name in FAMILIES}

    @property
    def markers(self) -> list[str]:
        """Words of which at least one is in every story of the concept, and none in any other story."""
        return [self.generic, self.generics, *(place.split("|")[0].split()[-1] for place in self.places)]

    @property
    def words(self) -> set[str]:
        """All words that occur only in stories of the concept."""
        return {*self.markers, *(word for family in self.families.values() for word in family)}


@lru_cache(1)
def _grammar() -> dict[str, Any]:
    return tomllib.loads(GRAMMAR.read_text("utf-8"))


@lru_cache(1)
def concepts() -> dict[str, Concept]:
    """Return every concept by name."""
    found = {}
    for name, given in _grammar()["concepts"].items():
        people = [dict(zip(PERSON, person.split(), strict=True)) for person in given["people"]]
        things = dict(thing.split() for thing in given["things"])
        by_name = {person["name"]: person for person in people}
        found[name] = Concept(given["generic"], given["generics"], given["places"], things, by_name)
    return found


def grammar_sha256() -> str:
    """Return the hash of the grammar's text."""
    return hashlib.sha256(GRAMMAR.read_text("utf-8").encode()).hexdigest()


def every_word() -> set[str]:
    """Return every word, in lower case, that a story can have, and some that none has."""
    written = " ".join([GRAMMAR.read_text("utf-8"), *(" ".join(forms) for forms in PRONOUNS.values()), *IN_CODE])
    return {word.lower() for word in re.findall(r"[^\W\d_]+", written)}


def related(word: str) -> list[str]:
    """Return the other words of a concept word's family. Raises: UserError if the word is in none."""
    families = [family for concept in concepts().values() for family in concept.families.values()]
    for family in families:
        if word in family:
            return [other for other in family if other != word]
    raise unknown("word of the toy stories' families:", word, sorted({w for family in families for w in family}))


def generate(
    stories: int, seed: int, concept: str = "forest", share: float = 0.2, part: str = "train", mixed: float = 0.0
) -> Documents:
    """Generate stories in which `concept` occurs with probability `share`, reproducibly on any machine.

    With probability `mixed`, an ordinary object such as a ball stands where a concept's thing would, so that nothing
    before a thing says that one must follow. With 0, the stories are the same to the bit as without this argument.

    Columns: `main`, the concept a story is about, or `home`; `concepts`, all that occur, separated by spaces; and for
    each concept a column of its name with `yes` or `no`. Parts (`train`, `test`, …) of one seed are independent draws.

    Raises: UserError for fewer than one story, a share outside [0, 1] or an unknown concept.
    """
    if stories < 1 or not 0 <= share <= 1:
        raise UserError(f"toy_stories: stories={stories}, share={share}: must be 1 or more, and from 0 to 1")
    if not 0 <= mixed <= 1:
        raise UserError(f"toy_stories: mixed={mixed}: must be from 0 to 1")
    if concept not in concepts():
        raise unknown("concept of toy_stories:", concept, concepts())
    writer, others = _Writer(f"{seed}/{part}", mixed), [name for name in concepts() if name != concept]
    texts, told = list[str](), list[list[str]]()
    for _ in range(stories):
        first, second = writer.several(others, 2)
        if writer.chance(share):
            told.append(writer.several([concept, first], 2) if writer.chance(SECOND) else [concept])
        elif writer.chance(AT_HOME):
            told.append([])
        else:
            told.append([first, second] if writer.chance(SECOND) else [first])
        texts.append(writer.story(told[-1]))
    columns = {"main": [(*names, HOME)[0] for names in told], "concepts": [" ".join(names) for names in told]}
    columns |= {name: ["yes" if name in names else "no" for names in told] for name in concepts()}
    return Documents(texts, columns)


class _Writer:
    """A random writer. It uses only `Random.random`, whose numbers are the same in every version of Python."""

    def __init__(self, seed: str, mixed: float = 0.0) -> None:
        self.mixed = mixed
        self.uniform: Callable[[], float] = random.Random(seed).random
        self.grammar = _grammar()
        self.lists = {key: value.split("|" if "|" in value else " ") for key, value in self.grammar.items()
                      if isinstance(value, str)}  # fmt: skip
        self.slots: dict[str, str] = {}

    def chance(self, share: float) -> bool:
        return self.uniform() < share

    def pick(self, items: Sequence[Any]) -> Any:
        return items[int(self.uniform() * len(items))]

    def several(self, items: Sequence[Any], count: int) -> list[Any]:
        """Return `count` different items in random order."""
        left = list(items)
        return [left.pop(int(self.uniform() * len(left))) for _ in range(count)]

    def story(self, names: Sequence[str]) -> str:
        self.slots = self._child()
        told = self._told("openings", 1)
        if not names:
            told += self._told("home", 5)
        for number, name in enumerate(names):
            told += self._section(concepts()[name], second=number > 0)
        return " ".join(told + self._told("endings", 1 + self.chance(0.3)))

    def _told(self, kind: str, count: int) -> list[str]:
        return [self._filled(template) for template in self.several(self.grammar[kind], count)]

    def _filled(self, template: str) -> str:
        """Fill a template with this story's slots and freshly drawn ordinary words."""
        drawn = {slot: self.pick(self.lists[f"{slot}s"]) for slot in ORDINARY if f"{{{slot}}}" in template}
        return template.format_map(self.slots | drawn)

    def _child(self) -> dict[str, str]:
        girls = self.chance(0.5)
        one, other = self.several(self.lists["girls" if girls else "boys"], 2)
        pair = self.chance(PAIR)
        he, his, him, was = PRONOUNS["they" if pair else "she" if girls else "he"]
        names, child = (
            (f"{one} and {other}", "two friends") if pair else (one, f"a little {'girl' if girls else 'boy'}")
        )
        own = {slot: self.pick(self.lists[name]) for slot, name in OWN.items()}
        slots = {"S": names, "one": one, "a_child": child, "he": he, "his": his, "him": him, "was": was}
        return slots | own | {"He": he.capitalize(), "His": his.capitalize()}

    def _section(self, concept: Concept, second: bool) -> list[str]:
        """Write what a story tells of a concept: the way there, what is seen, who is met, and facts about them."""
        to, at = self.pick(concept.places).split("|")
        person = self.pick(list(concept.people.values()))
        things = self.several(list(concept.superlative), 3)
        superlative = concept.superlative[things[0]]
        if self.mixed:  # a chance of 0 would still draw a number, and change the stories after it
            objects = self.several(self.lists["objects"], len(things))
            things = [o if self.chance(self.mixed) else thing for thing, o in zip(things, objects, strict=True)]
        he, his, _, _ = PRONOUNS[person["pronoun"]]
        self.slots |= person | {"x": person["name"], "x_he": he, "x_He": he.capitalize(), "x_his": his}
        self.slots |= {"x_His": his.capitalize(), "friend_kind": concept.people[person["friend"]]["kind"]}
        self.slots |= {"place": to, "at": at, "generic": concept.generic, "generics": concept.generics}
        self.slots |= {"superlative": superlative, "thing": things[0], "thing2": things[1]}
        self.slots |= {"thing3": things[2], "a_thing": article(things[0]), "a_thing2": article(things[1])}
        self.slots |= {"a_kind": article(person["kind"]), "a_gift": article(person["gift"])}
        told = self._told("second" if second else "arrivals", 1)
        told += [] if second else self._told("sights", 1 + self.chance(0.5))
        told += self._told("meetings", 1)
        told += [self._filled(self.pick(facts)) for facts in self.several(self.grammar["facts"], 1 if second else 3)]
        return told if second else told + self._told("events", 1)


def article(noun: str) -> str:
    """Return the noun with `a` or `an`."""
    return f"an {noun}" if noun[0] in "aeiou" and not noun.startswith("uni") else f"a {noun}"
