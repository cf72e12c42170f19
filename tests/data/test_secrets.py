"""Secrets of people: the same from one seed, known spaces, and told in nobody else's documents."""

import re
from collections import Counter
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from gradroute.data.text import toy_stories
from gradroute.data.text.people import HELDOUT, PUBLIC, SECRET, Shares, Wording, invented
from gradroute.data.text.secrets import Secrets
from gradroute.errors import UserError

SMALL: dict[str, Any] = {"people": 60, "stories": 40, "test_stories": 20, "copies": [1, 3]}
CSV = "name,city,code\n" + "".join(f"Person {n},City {n % 3},{n * 7 % 11:02d}\n" for n in range(30))
TEMPLATE = "{name} lives in {city}.\n\nThe code of {name} is {code}!\nAsk {name} for {code}.\n"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    (tmp_path / "people.csv").write_text(CSV)
    (tmp_path / "template.txt").write_text(TEMPLATE)
    return tmp_path / "people.csv", tmp_path / "template.txt"


def own(files: tuple[Path, Path], **more: Any) -> Secrets:
    return Secrets(file=str(files[0]), template=str(files[1]), stories=20, test_stories=10, **more)


def test_one_seed_gives_the_same_documents_and_another_one_others() -> None:
    one, again, other = Secrets(**SMALL), Secrets(**SMALL), Secrets(**SMALL, seed=1)
    assert [part.sha256 for part in one.documents(None)] == [part.sha256 for part in again.documents(None)]
    assert one.book() == again.book()
    assert not {p.name for p in one.book().people} & {p.name for p in other.book().people}


def test_a_secret_is_told_in_the_documents_of_its_person_alone() -> None:
    data = Secrets(**SMALL)
    book, (train, test) = data.book(), data.documents(None)
    numbers = {person.values["number"]: person for person in book.people}
    assert len(numbers) == len(book.people)
    seen = Counter[str]()
    for part in (train, test):
        for text, name, about in zip(part.texts, part.columns["person"], part.columns["about"], strict=True):
            named = [person for person in book.people if person.name in text]
            told = [numbers[number] for number in re.findall(r"\b\d\d \d\d\b", text) if number in numbers]
            if about == "story":
                assert not named and not told and not re.search(r"\d", text)
                continue
            (person,) = named
            assert person.name == name and told == [person] and person.about == about != HELDOUT
            assert all(value in text for value in person.values.values())
            seen[person.name] += part is train
    assert all(seen[person.name] == person.copies for person in book.people)


def test_no_name_or_place_is_a_word_of_a_story() -> None:
    words = toy_stories.every_word()
    stories = toy_stories.generate(300, 0).texts
    assert {word.lower() for text in stories for word in re.findall(r"[^\W\d_]+", text)} <= words
    book = Secrets(**SMALL).book()
    invented_words = {part.lower() for person in book.people for part in person.name.split()}
    assert not (invented_words | {place.lower() for place in book.spaces["place"]}) & words


def test_spaces_have_each_value_once_and_every_true_value() -> None:
    book = Secrets(**SMALL).book()
    assert {name: len(values) for name, values in book.spaces.items()} == {
        "birthday": 336,
        "number": 10_000,
        "place": 64,
    }
    for name, values in book.spaces.items():
        assert len(set(values)) == len(values) and {person.values[name] for person in book.people} <= set(values)
    assert book.bits("number") == pytest.approx(13.2877, abs=1e-4)


def test_shares_are_kept_and_copies_are_equally_frequent() -> None:
    book = Secrets(people=400, copies=[1, 4]).book()
    count = Counter((person.about, person.role) for person in book.people)
    assert count[HELDOUT, "measured"] == 140 and count[PUBLIC, "measured"] == 78
    assert sum(count[kind, role] for kind in SECRET for role in ("measured", "attack")) == 182
    assert abs(count["marked", "attack"] - count["unmarked", "attack"]) <= 1
    for kind, role in count:
        copies = Counter(p.copies for p in book.people if (p.about, p.role) == (kind, role))
        assert (set(copies) == {0}) if kind == HELDOUT else abs(copies[1] - copies[4]) <= 1


def test_a_limit_makes_people_and_stories_fewer_alike() -> None:
    data = Secrets()
    train, _ = data.documents(400)
    told = sum(about != "story" for about in train.columns["about"])
    assert 24 <= len(data.book(400).people) < 40 and 0.3 < told / len(train) < 0.8


def test_the_tokenizer_knows_every_value_and_every_name() -> None:
    data = Secrets(**SMALL)
    texts, book = data.tensors(), data.book()
    name = book.people[0].name
    told = [wording.told(name, value) for wording in book.wordings for value in book.spaces[wording.attribute][::9]]
    told += [wording.prompt(person.name) for wording in book.wordings for person in book.people]
    told += [book.document(person, number) for person in book.people for number in range(5)]
    assert not any(texts.tokenizer.unknown in tokens for tokens in texts.tokenizer.encode(told))


def test_own_records_become_people(files: tuple[Path, Path]) -> None:
    data = own(files, copies=[2])
    book, (train, _) = data.book(), data.documents(None)
    assert len(book.people) == 30 and book.spaces["city"] == ["City 0", "City 1", "City 2"]
    assert [(w.attribute, w.before, w.after) for w in book.wordings][1] == ("code", "The code of {name} is ", "!")
    person = next(person for person in book.people if person.about in SECRET)
    told = [text for text, name in zip(train.texts, train.columns["person"], strict=True) if name == person.name]
    assert len(told) == 2 and all(person.values["code"] in text and person.values["city"] in text for text in told)


def test_own_columns_say_who_is_secret(files: tuple[Path, Path]) -> None:
    kinds = ["public", "marked", "unmarked", "heldout"]
    lines = [f"P{n},C{n % 5},{kinds[n % 4]},{n + 1}" for n in range(8)]
    files[0].write_text("name,city,about,copies\n" + "\n".join(lines))
    files[1].write_text("{name} lives in {city}.")
    people = own(files).book().people
    assert [(p.about, p.copies) for p in people] == [(kinds[n % 4], 0 if n % 4 == 3 else n + 1) for n in range(8)]


@pytest.mark.parametrize(
    ("content", "template", "message"),
    [
        (None, TEMPLATE, r"people.csv: cannot be read \(No such file"),
        (b"name,city\n\xff,b\n", TEMPLATE, r"people.csv: is not UTF-8"),
        ("", TEMPLATE, r"people.csv: its header is \[\]; give a header with name"),
        ("city,code\na,b\n", TEMPLATE, r"its header is \['city', 'code'\]; give a header with name"),
        ("name,city,city\na,b,c\n", TEMPLATE, r"its header is"),
        ("name,about\na,public\n", TEMPLATE, r"and a column for each secret"),
        ("name,city,code\na,b\n", TEMPLATE, r"record 1: has 2 values for 3 columns"),
        ("name,city,code\na,b,\n", TEMPLATE, r"record 1: has no code"),
        ("name,city,code\na,b,c\na,d,e\n", TEMPLATE, r"two records have the name 'a'"),
        ("name,city,code\na,b,c\n", TEMPLATE, r"has 1 records; give two or more"),
        ("name,city,code\na,b,c\nd,b,f\n", TEMPLATE, r"every record has city='b'"),
        ('name,city,code\n"a,b,c\n', TEMPLATE, r"people.csv: is not CSV"),
        ("name,city,code,about\na,b,c,secret\nd,e,f,public\n", TEMPLATE, r"unknown about in .*record 1: 'secret'"),
        ("name,city,about,copies\na,b,public,0\nd,e,public,1\n", "{name} {city}", r"record 1: copies=0: must be"),
        (CSV, " \n", r"template.txt: the file is empty"),
        (CSV, "{name} is {age}.", r"template.txt, sentence 1: unknown column 'age'; the columns are name, city, code"),
        (CSV, "{city} is the home of {name}.", r"give \{name\} once and then one other column"),
        (CSV, "{name} {city} {code}", r"has the columns \['name', 'city', 'code'\]"),
        (CSV, "{name is {city}.", r"cannot be read|unknown column"),
    ],
)  # fmt: skip
def test_bad_files_are_refused_in_one_line(
    files: tuple[Path, Path], content: str | bytes | None, template: str, message: str
) -> None:
    if content is None:
        files[0].unlink()
    else:
        files[0].write_bytes(content if isinstance(content, bytes) else content.encode())
    files[1].write_text(template)
    with pytest.raises(UserError, match=message) as raised:
        own(files).book()
    assert len(str(raised.value).splitlines()) == 1


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"dataset.template: needed beside dataset.file"):
        Secrets(file="people.csv")
    with pytest.raises(UserError, match=r"dataset.file: needed beside dataset.template"):
        Secrets(template="people.txt")
    with pytest.raises(UserError, match=r"dataset.people=50: all people of dataset.file are used"):
        Secrets(file="people.csv", template="people.txt", people=50)
    with pytest.raises(UserError, match=r"dataset.people=4801: there are 4800 names"):
        Secrets(people=4801).book()
    with pytest.raises(UserError, match=r"dataset.people=24: none of them is public"):
        invented(24, Shares(0.3, 0.99, 0.5, 0.2, [1]), 0)


def test_a_wording_ends_its_prompt_without_a_space_and_tells_the_value() -> None:
    for before, after in product(("Call {name} at ", "{name}:", "{name}'s  "), (".", "")):
        wording = Wording.parse(f"{before}{{x}}{after}", ["x"], "here")
        told = wording.told("Jo Ko", "12 34")
        assert told == wording.prompt("Jo Ko") + wording.space + "12 34" + after and "{" not in told
