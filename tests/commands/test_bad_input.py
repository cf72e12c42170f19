"""Texts and models that cannot be used: one line, exit status 2, before any training, and nothing is left behind."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from small_pretrained import save_gguf, save_model

from gradroute.data.text.tokenizing import train_words

TREE, DOG = "the cat sat on a mat and saw a tree .", "the dog ran to the house and ate ."
MIXED = [TREE, DOG] * 6
COLUMN = ["routing.groups.forget={column: kind, values: [a], words: []}"]
TINY = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "trainer.batch_size=4", "trainer.tune_steps=1",
    "model.expand=[0]", "model.added=4", "dataset=text", "dataset.length=16", "dataset.test_stories=4",
    "finetune.documents=[1]", "relearn.documents=[1]", "completions=null", "output_dir=out",
]  # fmt: skip
OWN = ["model.layers=1", "model.width=8", "model.heads=2", "model.hidden=8", "dataset.tokenizer=words"]
HF = ["model=hf", "model.pretrained=model", "dataset.tokenizer=pretrained"]
WORDS = "routing.groups.forget: word list ['tree', 'trees', 'forest', 'forests', 'woodland', 'woodlands']: is in"


def texts(documents: list[str]) -> Callable[[Path], object]:
    return lambda folder: (folder / "data.txt").write_text("\n<|endoftext|>\n".join(documents))


def rows(found: list[dict[str, Any]]) -> Callable[[Path], object]:
    return lambda folder: (folder / "data.jsonl").write_text("\n".join(json.dumps(row) for row in found))


def of_kinds(kinds: str) -> list[dict[str, Any]]:
    return [{"text": DOG, "kind": kind} for kind in kinds]


TEXTS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "empty": (texts([""]), [], "data.txt: the file is empty"),
    "blank": (texts([" ", "\t\n"]), [], "data.txt: has no document; every text is empty"),
    "empty_rows": (rows([{"text": ""}] * 9), [], "data.jsonl: has no document; every text is empty"),
    "one": (texts([TREE]), [], "data.txt: has one document; give two or more, since one is needed to test on"),
    "few": (texts([TREE, DOG]), [], "has 2 documents, too few for dataset.test_stories=4; lower it"),
    "two": (texts([TREE, DOG]), ["dataset.test_stories=1"], f"{WORDS} all of the 1 documents"),
    "not_a_text": (lambda folder: (folder / "data.txt").write_bytes(b"\xff\xfe\0"), [], "is not UTF-8"),
    "all_forget": (texts([TREE] * 12), [], f"error: {WORDS} all of the 8 documents"),
    "none_forget": (texts([DOG] * 12), [], f"error: {WORDS} none of the 8 documents"),
    "none_to_test": (texts([*MIXED[:8], *[DOG] * 4]), [], f"error: in the test data, {WORDS} none of the 4 documents"),
    "all_to_test": (texts([*MIXED[:8], *[TREE] * 4]), [], f"error: in the test data, {WORDS} all of the 4 documents"),
    "one_group": (rows(of_kinds("b" * 12)), COLUMN, "routing.groups.forget: has no training point"),
    "none_to_validate": (
        rows(of_kinds("abababab" "bbbb")), COLUMN, "relearn.group=forget: has no document to test on"
    ),
    "no_label": (
        texts(MIXED), ["routing.labelled_fraction=0"], "routing.groups.forget: the forget label: is in none of the 8"
    ),
    "word_unknown": (
        texts(MIXED), ["routing.groups.forget.words=[tree,trees]", "routing.groups.forget.tokens=words"],
        "routing.groups.forget: phrase 'trees' has a word outside the vocabulary",
    ),
    "small_vocabulary": (
        texts(MIXED), ["dataset.tokenizer=bpe", "dataset.vocabulary=99"], "a byte-level BPE needs 257 or more"
    ),
}  # fmt: skip


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def of_gguf(folder: Path) -> None:
    (folder / "model").mkdir()
    save_gguf(folder / "model" / "tiny.gguf")
    cut(folder / "model" / "tiny.gguf")


def of_llama(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda folder: change(save_model(folder / "model", "llama"))


def edited(**settings: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        about = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(about | settings))

    return edit


def another_tokenizer(folder: Path) -> None:
    text = train_words([" ".join(f"word{i}" for i in range(900))]).to_json()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", "<eos>"))


MODELS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "gguf_cut": (of_gguf, [], "model 'model': is not a whole GGUF file, or of an unknown kind ["),
    "weights_cut": (of_llama(lambda f: cut(f / "model.safetensors")), [], "cannot be loaded as a causal language"),
    "tokenizer_cut": (of_llama(lambda f: cut(f / "tokenizer.json")), [], "tokenizer.json: is not a tokenizer file ("),
    "tokenizer_of_another": (
        of_llama(another_tokenizer), [], "dataset.tokenizer: has 904 tokens, and 'model' has 800; choose another model"
    ),
    "tokenizer_learned": (of_llama(bool), ["dataset.tokenizer=bpe"], "dataset.tokenizer=bpe: must be pretrained, or"),
    "vocabulary_beyond_the_embedding": (
        of_llama(edited(vocab_size=900)), [],
        "has shape (800, 16), and its configuration requires (900, 16); choose another model",
    ),
}  # fmt: skip


def refused(command: Callable[..., Any], folder: Path, given: list[str], message: str) -> None:
    before = {path for path in folder.rglob("*")}
    data = "data.jsonl" if (folder / "data.jsonl").exists() else "data.txt"
    result = command("gradroute-run", *TINY, f"dataset.files={data}", *given, cwd=folder)
    assert result.returncode == 2, result.stdout + result.stderr
    assert message in result.stderr and len(result.stderr.splitlines()) == 1, result.stderr
    assert {path for path in folder.rglob("*")} == before


@pytest.mark.parametrize("case", TEXTS)
def test_texts_are_refused_in_one_line(case: str, forked: Callable[..., Any], tmp_path: Path) -> None:
    write, given, message = TEXTS[case]
    texts(MIXED)(tmp_path)
    write(tmp_path)
    refused(forked, tmp_path, [*OWN, *given], message)


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("gguf") and find_spec("accelerate")), reason="needs gradroute[hf]")
@pytest.mark.parametrize("case", MODELS)
def test_models_are_refused_in_one_line(case: str, forked: Callable[..., Any], tmp_path: Path) -> None:
    write, given, message = MODELS[case]
    texts(MIXED)(tmp_path)
    write(tmp_path)
    refused(forked, tmp_path, [*HF, *given], message)


@pytest.mark.parametrize("documents", [MIXED, ["tree", "dog"] * 6], ids=["shorter_than_a_row", "of_one_word"])
def test_short_texts_are_no_mistake(documents: list[str], forked: Callable[..., Any], tmp_path: Path) -> None:
    texts(documents)(tmp_path)
    given = [*TINY, *OWN, "dataset.files=data.txt", "dataset.length=200"]
    result = forked("gradroute-run", *given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
