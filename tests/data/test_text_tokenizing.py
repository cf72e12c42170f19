"""Tokenizers: lossless, deterministic, and not to be confused with one another."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute.data.text.tokenizing import END, UNKNOWN, Tokenizer, load, train_bpe, train_words
from gradroute.data.text.toy_stories import generate
from gradroute.errors import UserError

TEXTS = generate(300, 0).texts
BPE, WORD = train_bpe(TEXTS, 500), train_words(TEXTS)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_survives_a_bpe(text: str) -> None:
    assert BPE.decode(BPE.encode([text])[0]) == text


def test_stories_survive_both_and_words_are_single_tokens() -> None:
    for tokenizer in (BPE, WORD):
        assert [tokenizer.decode(tokens) for tokens in tokenizer.encode(TEXTS[:50])] == TEXTS[:50]
    (tokens,) = WORD.encode(["Lily saw the oak."])
    assert [WORD.spellings[t] for t in tokens] == ["Lily", " saw", " the", " oak", "."]
    assert WORD.encode(["Lily zyx"])[0][1] == WORD.unknown and BPE.unknown is None


def test_words_are_numbered_by_how_often_they_occur() -> None:
    counts = Counter(token for tokens in WORD.encode(TEXTS) for token in tokens)
    numbers = [counts[token] for token in range(2, WORD.size)]
    assert numbers == sorted(numbers, reverse=True) and min(numbers) > 0
    small = train_words(TEXTS, 100)
    assert small.size == 100 and small.spellings[:100] == WORD.spellings[:100]


def test_the_end_of_a_document_is_a_token_and_cannot_be_written_by_one() -> None:
    for tokenizer in (BPE, WORD):
        assert tokenizer.decode([tokenizer.end]) == END
        assert tokenizer.end not in tokenizer.encode([f"a{END}b"])[0]


def test_training_is_the_same_in_another_process_with_another_number_of_threads() -> None:
    script = (
        "from gradroute.data.text.tokenizing import *; from gradroute.data.text.toy_stories import generate;"
        "texts = generate(300, 0).texts; print(train_bpe(texts, 500).sha256, train_words(texts).sha256)"
    )
    environment = {**os.environ, "RAYON_NUM_THREADS": "1", "PYTHONHASHSEED": "7"}
    result = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == [BPE.sha256, WORD.sha256]


@pytest.mark.parametrize("tokenizer", [BPE, WORD], ids=["bpe", "words"])
def test_a_file_gives_the_tokenizer_back(tokenizer: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(tokenizer.to_json(), "utf-8")
    again = load(tmp_path / "tokenizer.json")
    assert again.sha256 == tokenizer.sha256 and again.encode(TEXTS[:5]) == tokenizer.encode(TEXTS[:5])
    assert again.end == tokenizer.end and again.unknown == tokenizer.unknown
    again.check(tokenizer.sha256, "the checkpoint")


def test_another_tokenizer_is_noticed() -> None:
    assert train_bpe(TEXTS, 501).sha256 != BPE.sha256
    with pytest.raises(UserError, match=r"the checkpoint was made with another tokenizer \(SHA-256 "):
        BPE.check(WORD.sha256, "the checkpoint")


def test_the_end_may_have_another_name_or_be_a_number(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(WORD.to_json().replace(END, "</s>"), "utf-8")
    for end in ("</s>", WORD.end):
        found = load(tmp_path / "a.json", end)
        assert (found.end, found.end_name) == (WORD.end, "</s>") and found.encode(TEXTS[:5]) == WORD.encode(TEXTS[:5])
    for unknown in ("</p>", 10**6):
        with pytest.raises(UserError, match=rf"a\.json: the tokenizer has no token {unknown} to end a document"):
            load(tmp_path / "a.json", unknown)


def test_what_a_file_says_of_truncation_padding_and_holes_loses_nothing(tmp_path: Path) -> None:
    content = json.loads(WORD.to_json())
    content["truncation"] = {"max_length": 3, "strategy": "LongestFirst", "stride": 0, "direction": "Right"}
    content["padding"] = {
        "strategy": {"Fixed": 999}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0, "pad_type_id": 0,
        "pad_token": END,
    }  # fmt: skip
    content["model"]["vocab"][" zyx"] = WORD.size + 7
    (tmp_path / "a.json").write_text(json.dumps(content))
    found = load(tmp_path / "a.json")
    assert found.encode(TEXTS[:5]) == WORD.encode(TEXTS[:5])
    assert found.encode(["a zyx"])[0][1] == WORD.size + 7 == found.size - 1 == len(found.spellings) - 1


def test_mistakes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="size=256: a byte-level BPE needs 257 or more"):
        train_bpe(TEXTS, 256)
    with pytest.raises(UserError, match=f"size=2: words need 3 or more, two of them for .* and {UNKNOWN}"):
        train_words(TEXTS, 2)
    with pytest.raises(UserError, match=r"nowhere\.json: cannot be read"):
        load(tmp_path / "nowhere.json")
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(UserError, match=r"a\.json: is not a tokenizer file"):
        load(tmp_path / "a.json")
    (tmp_path / "b.json").write_text(WORD.to_json().replace(END, "<|stop|>"))
    with pytest.raises(UserError, match=r"b\.json: the tokenizer has no token <\|endoftext\|>"):
        load(tmp_path / "b.json")
