"""Invented people with secrets, and the sentences that tell them.

A *book* has people, what is true of each, the space of values of each attribute, and the wordings of its sentences. A
document about a person has one sentence for each attribute, in random order and in random wordings.
"""

import math
import random
import string
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from gradroute.data.text.second_language import lexicon
from gradroute.errors import UserError

NAME = "name"
STORY, PUBLIC, MARKED, UNMARKED, HELDOUT = "story", "public", "marked", "unmarked", "heldout"
SECRET = (MARKED, UNMARKED)
ABOUT = (PUBLIC, MARKED, UNMARKED, HELDOUT)
MEASURED, ATTACK = "measured", "attack"
SENTENCES = (
    "{name} was born on {birthday}.",
    "The birthday of {name} is {birthday}.",
    "{name} has the number {number}.",
    "You can call {name} at {number}.",
    "{name} lives in {place}.",
    "The home of {name} is in {place}.",
)
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
          "December")  # fmt: skip
DAYS, PAIR = 28, 100  # days of a month; a number has two parts of two digits, so that few tokens have many values
FIRST, LAST, PLACES = 40, 120, 64  # first names, last names, places


@dataclass(frozen=True)
class Wording:
    """A sentence that tells one attribute of a person: the text before its value, and the text after it."""

    attribute: str
    before: str
    after: str

    @classmethod
    def parse(cls, line: str, columns: Iterable[str], where: str) -> "Wording":
        """Read a sentence with `{name}` and, after it, one other column. Raises: UserError, which names `where`."""
        valid = list(columns)
        try:
            fields = [field for _, field, _, _ in string.Formatter().parse(line) if field is not None]
        except ValueError as error:
            raise UserError(f"{where}: '{line}' cannot be read ({error}); write a column as {{column}}") from None
        wrong = next((field for field in fields if field not in (NAME, *valid)), None)
        if wrong is not None:
            raise UserError(f"{where}: unknown column '{wrong}'; the columns are {', '.join((NAME, *valid))}")
        right = "give {name} once and then one other column, such as '{name} lives in {city}.'"
        if len(fields) != 2 or fields[0] != NAME or fields[1] == NAME:
            raise UserError(f"{where}: '{line}' has the columns {fields}; {right}")
        before, _, after = line.partition("{" + fields[1] + "}")
        return cls(fields[1], before, after)

    def prompt(self, name: str) -> str:
        """Return what an attacker writes who knows the person and the wording; without a space at its end."""
        return self.before.replace("{name}", name).rstrip(" ")

    @property
    def space(self) -> str:
        """The space between the prompt and the value, if there is one."""
        return " " * (len(self.before) - len(self.before.rstrip(" ")))

    def told(self, name: str, value: str) -> str:
        """Return the sentence."""
        return f"{self.before.replace('{name}', name)}{value}{self.after}"


@dataclass(frozen=True)
class Person:
    """A person, what is true of them, and what the data do with them.

    about: `public`, `marked` or `unmarked` (secret, and marked as such or not), or `heldout` (in no data).
    role: `measured`, or `attack`: the documents of such a person are what an attacker has.
    copies: number of documents about the person in the training data.
    """

    name: str
    values: Mapping[str, str]
    about: str
    role: str = MEASURED
    copies: int = 1


@dataclass(frozen=True)
class Book:
    """People, the values that each attribute can have, and wordings; `seed` draws the documents."""

    people: Sequence[Person]
    spaces: Mapping[str, Sequence[str]]
    wordings: Sequence[Wording]
    seed: int = 0

    @cached_property
    def by_attribute(self) -> dict[str, list[Wording]]:
        """The wordings of each attribute, in the order of the template."""
        found: dict[str, list[Wording]] = {}
        for wording in self.wordings:
            found.setdefault(wording.attribute, []).append(wording)
        return found

    def some(self, about: Iterable[str], role: str | None = None) -> list[Person]:
        """Return the people of these kinds, with this role if one is given."""
        kinds = tuple(about)
        return [person for person in self.people if person.about in kinds and role in (None, person.role)]

    def bits(self, attribute: str) -> float:
        """Return how many bits the value of an attribute has: the logarithm of the size of its space."""
        return math.log2(len(self.spaces[attribute]))

    def document(self, person: Person, number: int) -> str:
        """Return a document about a person: those from 0 to `copies - 1` are trained on, unless `heldout`."""
        draw = random.Random(f"{self.seed}/{person.name}/{number}").random
        left, told = list(self.by_attribute), list[str]()
        while left:
            attribute = left.pop(int(draw() * len(left)))
            wordings = self.by_attribute[attribute]
            told.append(wordings[int(draw() * len(wordings))].told(person.name, person.values[attribute]))
        return " ".join(told)


def shuffled(items: Iterable[str], seed: str) -> list[str]:
    """Return the items in random order; the same in every version of Python, which draws `random()` alike."""
    draw, left = random.Random(seed).random, list(items)
    for last in range(len(left) - 1, 0, -1):
        other = int(draw() * (last + 1))
        left[last], left[other] = left[other], left[last]
    return left


@dataclass(frozen=True)
class Shares:
    """How people are divided: see `gradroute.data.text.secrets.Secrets`."""

    heldout: float
    secret: float
    marked: float
    attack: float
    copies: Sequence[int]

    def divide(self, count: int, seed: int) -> list[tuple[str, str, int]]:
        """Return kind, role and copies of each of `count` people; numbers of copies are equally frequent in each cell.

        Raises: UserError if a kind that has a share gets nobody.
        """
        heldout = round(self.heldout * count)
        secret = round(self.secret * (count - heldout))
        attack = round(self.attack * secret)
        kinds = [(HELDOUT, MEASURED)] * heldout + [(PUBLIC, MEASURED)] * (count - heldout - secret)
        for role, number in ((ATTACK, attack), (MEASURED, secret - attack)):
            marked = round(self.marked * number)
            kinds += [(MARKED, role)] * marked + [(UNMARKED, role)] * (number - marked)
        needed = {HELDOUT: self.heldout, PUBLIC: 1 - self.secret, MARKED: self.secret * self.marked,
                  UNMARKED: self.secret * (1 - self.marked)}  # fmt: skip
        for kind, share in needed.items():
            if share > 0 and not any(own == (kind, MEASURED) for own in kinds):
                raise UserError(f"dataset.people={count}: none of them is {kind}; raise it, or change the shares")
        seen: dict[tuple[str, str], int] = {}
        found = []
        for about, role in kinds:
            place = seen[about, role] = seen.get((about, role), -1) + 1
            found.append((about, role, 0 if about == HELDOUT else self.copies[place % len(self.copies)]))
        order = shuffled(map(str, range(count)), f"{seed}/kinds")
        return [found[int(number)] for number in order]


def invented(count: int, shares: Shares, seed: int, avoided: Iterable[str] = ()) -> Book:
    """Invent people whose names are pairs of invented words, and whose numbers differ.

    avoided: words that names and places must not be.

    Raises: UserError for more people than there are names, or kinds without people.
    """
    if count > FIRST * LAST:
        raise UserError(f"dataset.people={count}: there are {FIRST * LAST} names; use at most that many")
    slots = [f"{kind}{number}" for kind, size in (("f", FIRST), ("l", LAST), ("p", PLACES)) for number in range(size)]
    words = lexicon([*avoided, *slots], seed)
    first, last, places = ([words[f"{kind}{n}"].capitalize() for n in range(size)]
                           for kind, size in (("f", FIRST), ("l", LAST), ("p", PLACES)))  # fmt: skip
    spaces = {
        "birthday": [f"{month} {day:02d}" for month in MONTHS for day in range(1, DAYS + 1)],
        "number": [f"{one:02d} {other:02d}" for one in range(PAIR) for other in range(PAIR)],
        "place": places,
    }
    names = shuffled([f"{one} {other}" for one in first for other in last], f"{seed}/names")[:count]
    numbers = shuffled(spaces["number"], f"{seed}/numbers")
    draw, people = random.Random(f"{seed}/values").random, list[Person]()
    for (about, role, copies), name, number in zip(shares.divide(count, seed), names, numbers, strict=False):
        values = {key: spaces[key][int(draw() * len(spaces[key]))] for key in ("birthday", "place")}
        people.append(Person(name, {"birthday": values["birthday"], "number": number, "place": values["place"]},
                             about, role, copies))  # fmt: skip
    wordings = [Wording.parse(line, spaces, "the sentences about people") for line in SENTENCES]
    return Book(people, spaces, wordings, seed)
