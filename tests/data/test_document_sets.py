"""Document sets by `datasets`: a local folder stands for one on the hub, which no test asks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from robust import one_line
from small_language import unreachable

from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.text.corpora import Texts
from gradroute.data.text.toy_stories import generate
from gradroute.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs gradroute[hf]")
STORIES = generate(120, 0).texts
SMALL = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "dataset=tinystories",
    "dataset.tokenizer=words", "dataset.stories=80", "dataset.test_stories=40",
    "dataset.length=48", "model.layers=2", "model.expand=[0,1]",
    "model.width=16", "model.heads=2",
    "finetune.documents=[4]", "relearn.documents=[2]", "relearn.samples=1",
]  # fmt: skip


@pytest.fixture
def stories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that `datasets` reads: 80 stories to train on, 40 to test on."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "stories"
    folder.mkdir()
    for split, texts in (("train", STORIES[:80]), ("validation", STORIES[80:])):
        rows = [{"text": text, "number": number} for number, text in enumerate(texts)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(*changes: str) -> Config:
    return configuration([*SMALL, *changes])


def read(own: Config, *limits: int) -> Texts:
    found: Texts = build(own.dataset, "dataset").tensors(*limits)
    return found


def test_splits_are_trained_on_and_tested_on(stories: Path) -> None:
    texts = read(config(f"dataset.hub={stories}"))
    assert texts.train.documents.texts == STORIES[:80] and texts.test.documents.texts == STORIES[80:]
    assert texts.train.documents.columns["number"][:3] == ["0", "1", "2"]
    changes = ["dataset.stories=null", "dataset.test_stories=10"]
    few = read(config(f"dataset.hub={stories}", *changes), 30, 5)
    assert few.train.documents.texts == STORIES[:30] and few.test.documents.texts == STORIES[80:85]


def test_one_split_is_read_as_a_file_is(stories: Path) -> None:
    counts = ["dataset.stories=50", "dataset.test_stories=20"]
    hub = read(config(f"dataset.hub={stories}", "dataset.test_split=null", *counts))
    files = ["dataset=text", f"dataset.files={stories}/train.jsonl", "dataset.vocabulary=null"]
    assert hub.sha256 == read(config(*files, *counts)).sha256
    assert hub.test.documents.texts == STORIES[50:70]


MISTAKES = [
    (["dataset.split=tset"], r"split 'tset': cannot be loaded \["),
    (["dataset.field=txt"], "row 1: has no field 'txt', its fields are text, number; set dataset.field=text"),
    (["dataset.test_stories=41"], "split 'validation': has 40 documents, not dataset.test_stories=41; lower it"),
    (["dataset.test_split=null", "dataset.test_stories=80"], "has 80 documents, too few for dataset.test_stories=80"),
    (["dataset.split=''"], "dataset.split='': must be the name of a split"),
    (["dataset.files=x"], "unknown key 'dataset.files'; HubTexts takes: hub, split, test_split, field, stories"),
    (["dataset.hub=null"], "dataset.hub=None: must be of type str"),
    (["dataset.hub=''"], "dataset.hub='': must be the name of a data set"),
    (["dataset=text", "dataset.files=x"], "unknown key 'dataset.hub'; TextFiles takes: files, field, stories"),
    (["dataset=toy_stories"], "unknown key 'dataset.hub'; ToyStories takes: concept, share, stories"),
    (["dataset.tokenizer=pretrained"], "dataset.tokenizer=pretrained: must be words, bpe or a path"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_are_said_in_one_line(stories: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        read(config(f"dataset.hub={stories}", *changes))
    assert one_line(error.value)


@pytest.mark.slow
def test_the_command_line_runs_on_a_set_and_verifies(forked: Callable[..., Any], stories: Path, tmp_path: Path) -> None:
    result = forked("gradroute-run", *SMALL, f"dataset.hub={stories}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (made,) = tmp_path.glob("outputs/stories_era/*")
    assert forked("gradroute-verify", str(made), cwd=tmp_path).returncode == 0


@pytest.mark.slow
def test_a_set_that_cannot_be_reached_ends_with_status_2(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = unreachable(command, tmp_path, monkeypatch, *SMALL, "dataset.hub=nobody/nothing")
    assert said.startswith("error: dataset 'nobody/nothing', split 'train': cannot be loaded [")
