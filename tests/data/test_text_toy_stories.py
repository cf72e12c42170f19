"""Toy stories: pinned, and what a concept is known exactly."""

import re
from itertools import combinations
from typing import Any

import pytest

from gradroute.data.text.toy_stories import HOME, article, concepts, generate, grammar_sha256, related
from gradroute.errors import UserError

# fixed before the first result of an experiment was looked at
GRAMMAR = "bfac2362855801cd2faf0a6acf0a9cff34f322836afe3d6f70754cf22f60bfab"
FIRST_THOUSAND = "4a5c98c490ce4bf693ad15187e90762e0032ac65d2a46076403c606fc14dbb8e"
STORIES = generate(1000, seed=0)


def words_of(text: str) -> set[str]:
    return set(re.findall(r"\w+", text))


def test_the_grammar_and_the_stories_are_what_was_fixed() -> None:
    assert grammar_sha256() == GRAMMAR
    assert STORIES.sha256 == FIRST_THOUSAND


def test_stories_depend_on_seed_and_part_and_a_longer_draw_begins_with_a_shorter_one() -> None:
    again, longer = generate(1000, 0), generate(1100, 0)
    assert again == STORIES and longer.texts[:1000] == STORIES.texts
    other, test = generate(1000, 1), generate(1000, 0, part="test")
    assert not {*other.texts, *test.texts} & set(STORIES.texts) and not set(other.texts) & set(test.texts)


def test_a_concepts_words_are_in_its_stories_only_and_one_marker_is_in_each() -> None:
    for name, concept in concepts().items():
        for text, yes in zip(STORIES.texts, STORIES.columns[name], strict=True):
            assert bool(words_of(text) & {*concept.markers}) == (yes == "yes")
            assert yes == "yes" or not words_of(text) & concept.words


def test_concepts_and_families_are_disjoint_and_large_enough_for_steering() -> None:
    families = [family for concept in concepts().values() for family in concept.families.values()]
    assert not any(set(a) & set(b) for a, b in combinations(families, 2))
    assert all(len(concept.families["things"]) == 24 for concept in concepts().values())
    assert "oak" not in related("oak") and len(related("oak")) == 23 and "birch" in related("oak")
    with pytest.raises(UserError, match="unknown word of the toy stories' families: 'oack'; did you mean oak"):
        related("oack")


def test_ordinary_objects_stand_where_things_would() -> None:
    """As often as asked, in the same sentences; without them, the stories are the pinned ones."""
    assert generate(1000, 0, mixed=0.0) == STORIES
    things, objects = concepts()["forest"].families["things"], ("ball", "kite", "doll")
    for mixed in (0.0, 0.3, 1.0):
        texts = generate(2000, 1, share=1.0, mixed=mixed).texts
        seen = [word for text in texts for word in re.findall(r"played hide and seek behind the (\w+)", text)]
        own = [word for word in seen if word in {thing for c in concepts().values() for thing in c.families["things"]}]
        assert len(seen) > 150 and 1 - len(own) / len(seen) == pytest.approx(mixed, abs=0.1)
        assert set(things) <= set(own) or mixed == 1.0
        assert set(objects) <= set(seen) or mixed == 0.0


def test_facts_are_told_as_they_are() -> None:
    """Whatever a story says of a creature is what the grammar says."""
    patterns = {
        "kind": r"\b{name} the (\w+)",
        "trait": r"{name} was a very (\w+)",
        "food": r"{name} loved to eat (\w+)",
        "hobby": r"{name} wanted to (\w+) all day",
        "friend": r"{name} and (\w+) were always together",
    }
    told = dict.fromkeys(patterns, 0)
    for concept in concepts().values():
        for name, person in concept.people.items():
            assert person["friend"] in concept.people and person["friend"] != name
            assert person["home"] in concept.superlative
            for text in STORIES.texts:
                for fact, pattern in patterns.items():
                    found = re.findall(pattern.format(name=name), text)
                    told[fact] += len(found)
                    assert set(found) <= {person[fact]}
    assert min(told.values()) > 20


def test_shares_are_those_asked_for() -> None:
    stories = generate(4000, 3, concept="sea", share=0.3)
    assert stories.columns["sea"].count("yes") / 4000 == pytest.approx(0.3, abs=0.03)
    assert generate(300, 3, share=0.0).columns["forest"] == ["no"] * 300
    assert generate(300, 3, share=1.0).columns["forest"] == ["yes"] * 300
    for number, (main, told) in enumerate(zip(stories.columns["main"], stories.columns["concepts"], strict=True)):
        names = told.split()
        assert main == (names[0] if names else HOME)
        assert [name for name in concepts() if stories.columns[name][number] == "yes"] == sorted(names, key=ORDER)


ORDER = list(concepts()).index


def test_there_is_enough_to_learn_and_no_slot_is_left_open() -> None:
    text = " ".join(STORIES.texts)
    assert not re.search(r"[{}]|  ", text)
    assert 300 <= len({*re.findall(r"\w+", text.lower())}) <= 1000
    assert len({*re.split(r'(?<=[.?!"]) ', text)}) > 3000
    assert 80 < len(re.findall(r"\w+|[^\w\s]", text)) / 1000 < 120


def test_agreement() -> None:
    for text in STORIES.texts:
        assert not re.search(r"\b(They|they) was\b|\b(He|She|he|she) were\b|\ba [aeiou](?!ni)|\ban [^aeiou]", text)
    assert article("unicorn") == "a unicorn" and article("umbrella") == "an umbrella" and article("yew") == "a yew"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"stories": 0}, "toy_stories: stories=0, share=0.2: must be 1 or more"),
        ({"stories": 1, "share": 1.5}, "share=1.5"),
        ({"stories": 1, "mixed": 1.5}, "mixed=1.5: must be from 0 to 1"),
        ({"stories": 1, "concept": "florest"}, "unknown concept of toy_stories: 'florest'; did you mean forest"),
    ],
)
def test_mistakes_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        generate(seed=0, **arguments)
    assert message in str(error.value)
