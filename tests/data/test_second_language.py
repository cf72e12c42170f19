"""The second language: one to one, never a real word, and chosen independently of labels."""

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradroute.config.compose import configuration
from gradroute.data.text.second_language import WORD, SecondLanguage, lexicon, translated
from gradroute.errors import UserError
from gradroute.tasks.language import LanguageModelling

WORDS = st.lists(st.text("abcdefgh'", min_size=1, max_size=9).filter(lambda word: WORD.fullmatch(word)), max_size=60)


@given(WORDS, st.integers(0, 100))
def test_the_lexicon_is_one_to_one_and_has_no_real_word(words: list[str], seed: int) -> None:
    found = lexicon(words, seed)
    assert found.keys() == {word.lower() for word in words}
    assert len(set(found.values())) == len(found) and not set(found.values()) & found.keys()
    assert all(re.fullmatch(r"([b-df-hj-np-tv-z]+[aeiou]+[b-df-hj-np-tv-z]?){1,4}", word) for word in found.values())
    assert found == lexicon(reversed(words), seed)


def test_case_punctuation_and_order_stay() -> None:
    words = {"tom": "fip", "the": "zo", "don't": "garu", "i": "ne"}
    text = 'Tom! "THE tom," I don\'t; 3 the-the.'
    assert translated(text, words) == 'Fip! "ZO fip," Ne garu; 3 zo-zo.'


def test_documents_of_the_second_language_are_the_same_stories_in_other_words() -> None:
    plain, test = SecondLanguage(share=0.0, stories=200, test_stories=50).documents(None)
    mixed, _ = SecondLanguage(share=0.25, stories=200, test_stories=50).documents(None)
    back = {v: k for k, v in lexicon(w for t in (*plain.texts, *test.texts) for w in WORD.findall(t)).items()}
    second = [language == "second" for language in mixed.columns["language"]]
    assert 25 <= sum(second) <= 75 and set(plain.columns["language"]) == {"first"}
    for one, other, translated_too in zip(plain.texts, mixed.texts, second, strict=True):
        assert (one != other) == translated_too
        if translated_too:  # words and punctuation in order
            words = [back.get(word.lower()) for word in WORD.findall(other)]
            assert words == [word.lower() for word in WORD.findall(one)]
            assert WORD.sub("", one) == WORD.sub("", other)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_labels_are_kept_whatever_the_language(tmp_path: Path, seed: int) -> None:
    """The language is not drawn by the numbers that choose the labels: each group keeps a quarter of its own."""
    overrides = ["experiment=second_language/sgtm", "trainer=smoke", f"seed={seed}", "routing.labelled_fraction=0.25"]
    overrides += ["dataset.stories=1600", "dataset.test_stories=40", "model.width=16", "model.heads=2"]
    task = LanguageModelling(configuration([*overrides, f"output_dir={tmp_path}"]))
    for number in (0, 1):
        own = task.train_groups == number
        kept = float((task.labelled[own] == number).float().mean())
        assert abs(kept - 0.25) < 4 * (0.25 * 0.75 / int(own.sum())) ** 0.5, (number, kept)
    assert bool(torch.isin(task.labelled, torch.tensor([-1, 0, 1])).all())


def test_own_files_become_a_second_language_too(tmp_path: Path) -> None:
    file = tmp_path / "texts.txt"
    file.write_text("\n<|endoftext|>\n".join(f"Story {n} tells of a dog." for n in range(40)))
    train, test = SecondLanguage(files=str(file), test_stories=10, share=0.5).documents(None)
    assert (len(train), len(test)) == (30, 10) and set(train.columns["language"]) == {"first", "second"}
    assert len({WORD.sub("", text) for text in train.texts}) == 30  # numbers stay
    with pytest.raises(UserError, match=r"too few for dataset.test_stories=40"):
        SecondLanguage(files=str(file), test_stories=40).documents(None)
