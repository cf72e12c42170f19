"""Document sets by `datasets`: a local folder stands for one on the hub, which no test asks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gradroute.data.text.toy_stories import generate
from hydra import compose, initialize_config_dir
from robust import one_line

from gradroute.commands.run import conf_dir
from gradroute.config.schema import Config
from gradroute.config.typed import from_mapping
from gradroute.data.text.corpora import load_texts
from gradroute.errors import UserError

datasets = pytest.importorskip("datasets", reason="needs gradroute[hf]")
STORIES = generate(120, 0).texts
SMALL = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "dataset=tinystories",
    "dataset.text.tokenizer=words", "dataset.text.stories=80", "dataset.text.test_stories=40",
    "dataset.text.length=48", "model.transformer.layers=2", "model.transformer.expand=[0,1]",
    "model.transformer.width=16", "model.transformer.heads=2",
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
    with initialize_config_dir(str(conf_dir().resolve()), version_base="1.3"):
        return from_mapping(compose("config", [*SMALL, *changes]))


def test_splits_are_trained_on_and_tested_on(stories: Path) -> None:
    texts = load_texts(config(f"dataset.text.hub={stories}").dataset)
    assert texts.train.documents.texts == STORIES[:80] and texts.test.documents.texts == STORIES[80:]
    assert texts.train.documents.columns["number"][:3] == ["0", "1", "2"]
    changes = ["dataset.text.stories=null", "dataset.text.test_stories=10"]
    few = load_texts(config(f"dataset.text.hub={stories}", *changes).dataset, 30, 5)
    assert few.train.documents.texts == STORIES[:30] and few.test.documents.texts == STORIES[80:85]


def test_one_split_is_read_as_a_file_is(stories: Path) -> None:
    counts = ["dataset.text.stories=50", "dataset.text.test_stories=20"]
    hub = load_texts(config(f"dataset.text.hub={stories}", "dataset.text.test_split=null", *counts).dataset)
    files = ["dataset=text", f"dataset.text.files={stories}/train.jsonl", "dataset.text.vocabulary=null"]
    assert hub.sha256 == load_texts(config(*files, *counts).dataset).sha256
    assert hub.test.documents.texts == STORIES[50:70]


MISTAKES = [
    (["dataset.text.split=tset"], r"split 'tset': cannot be loaded \["),
    (["dataset.text.field=txt"], "row 1: unknown field 'txt'; did you mean text"),
    (["dataset.text.test_stories=41"], "split 'validation': 40 documents, not dataset.text.test_stories=41; lower it"),
    (["dataset.text.test_split=null", "dataset.text.test_stories=80"], "80 documents, of which .* are to test on"),
    (["dataset.text.split=''"], "dataset.text.split='': must be the name of a split"),
    (["+dataset.text.files=x"], "dataset.text: give either files, .* or hub"),
    (["dataset.text.hub=null"], "dataset.text.split=train: must be left out"),
    (["dataset.text.hub=null", "dataset.text.test_split=null"], "dataset.text: give either files, .* or hub"),
    (["dataset.name=toy_stories"], "toy stories are written, not read; use dataset=tinystories"),
    (["dataset.text.tokenizer=pretrained"], "dataset.text.tokenizer=pretrained: must be words, bpe or a path"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_are_said_in_one_line(stories: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        load_texts(config(f"dataset.text.hub={stories}", *changes).dataset)
    assert one_line(error.value)


def test_the_command_line_runs_on_a_set_and_verifies(
    command: Callable[..., Any], stories: Path, tmp_path: Path
) -> None:
    result = command("gradroute-run", *SMALL, f"dataset.text.hub={stories}", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (made,) = tmp_path.glob("outputs/stories_era/*")
    assert command("gradroute-verify", str(made), cwd=tmp_path).returncode == 0


def test_a_set_that_cannot_be_reached_ends_with_status_2(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    cwd = tmp_path / "here"
    cwd.mkdir()
    result = command("gradroute-run", *SMALL, "dataset.text.hub=nobody/nothing", cwd=cwd)
    assert result.returncode == 2 and not list(cwd.iterdir())
    assert result.stderr.startswith("error: dataset 'nobody/nothing', split 'train': cannot be loaded [")
    assert len(result.stderr.splitlines()) == 1
