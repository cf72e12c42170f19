"""Validation documents: neither trained nor tested on, chosen by, and without them every number stays as it was."""

from pathlib import Path

import pytest
from small_language import config, refused

from gradroute.config.targets import build
from gradroute.data.text.corpora import Texts
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.tasks.language import LanguageModelling

HELD_OUT = ["dataset.test_stories=60", "dataset.validation_stories=20"]
FILES = ["dataset=text", "dataset.tokenizer=words", "dataset.vocabulary=null", "trainer.train_limit=null"]


def test_they_are_the_last_test_documents_and_the_others_stay(tmp_path: Path) -> None:
    one, other = (LanguageModelling(config(tmp_path, "stories_era", *given)) for given in ([], HELD_OUT))
    assert one.data.train.documents == other.data.train.documents
    assert one.data.test.documents == other.data.test.documents and len(one.data.test.documents) == 40
    assert one.data.tokenizer.sha256 == other.data.tokenizer.sha256 and one.data.sha256 != other.data.sha256
    assert one.data.validation is None and other.data.validation is not None
    texts = [set(part.documents.texts) for part in (other.data.train, other.data.test, other.data.validation)]
    assert len(texts[2]) == 20 and not texts[2] & (texts[0] | texts[1])
    assert not one.validation.held_out and other.validation.held_out
    told = other.data.validation.documents.columns["forest"]
    assert [other.names[i] == "forget" for i in other.validation.groups.tolist()] == [said == "yes" for said in told]


def test_files_are_divided_in_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "texts.txt").write_text("\n<|endoftext|>\n".join(f"number {n}" for n in range(30)))

    def read(*changes: str) -> Texts:
        own = config(tmp_path, "stories_era", *FILES, f"dataset.files={tmp_path}/texts.txt", *changes)
        found: Texts = build(own.dataset, "dataset").tensors(None, 6)
        return found

    sizes = ["dataset.stories=18", "dataset.test_stories=12"]
    plain, held = read(*sizes), read(*sizes, "dataset.validation_stories=8")
    assert plain.train.documents == held.train.documents and plain.validation is None
    assert held.test.documents.texts == [f"number {n}" for n in range(18, 22)] and held.validation is not None
    assert held.validation.documents.texts == [f"number {n}" for n in range(22, 28)]  # the limit of 6


@pytest.mark.slow
def test_steps_choose_by_them_and_every_stage_is_measured_on_them(tmp_path: Path) -> None:
    steps = "steps=[train,ablate,finetune,relearn,evaluate]"
    runs = [execute([config(tmp_path, "stories_era", steps, *given)])[0] for given in ([], HELD_OUT)]
    plain, held = [read_metrics(run) for run in runs if isinstance(run, Path)]
    assert [r for r in plain if r["split"] == "train"] == [r for r in held if r["split"] == "train"]
    trained = [[r for r in rows if (r["split"], r["head"]) == ("test", "model")] for rows in (plain, held)]
    assert trained[0] == trained[1]  # on the same documents
    stages = [
        {r["head"] for r in rows if r["split"] == "validation" and r["region"] != "sample_0"} for rows in (plain, held)
    ]
    assert stages == [set(), {"model", "model_ablated", "model_finetuned"}]
    curves = [[r for r in rows if r["region"] == "sample_0" and r["split"] == "validation"] for rows in (plain, held)]
    assert len(curves[0]) == len(curves[1]) and curves[0] != curves[1]
    last = {
        (r["head"], r["group"]): r["value"] for r in held if r["split"] == "validation" and r["region"] != "sample_0"
    }
    start = {r["group"]: r["value"] for r in curves[1] if (r["head"], r["step"]) == ("model_relearned_2", 0)}
    assert start == {group: last["model_finetuned", group] for group in start} and len(start) == 2


BY_COLUMN = ["routing.groups.forget={column: forest, values: [yes]}"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["dataset.validation_stories=40"], "validation_stories=40: leaves none of 40 test documents to test on"),
        (
            ["dataset.validation_stories=1"],
            "validation_stories=1: routing.groups.forget: word list .* is in none of the 1 documents",
        ),
        (
            ["dataset.validation_stories=1", *BY_COLUMN],
            "validation_stories=1: none of them is in group 'forget'; raise",
        ),
        (["dataset.validation_stories=-1"], "validation_stories=-1: must be from 0"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    refused(lambda: config(tmp_path, "stories_era", *changes), message)
    assert not list(tmp_path.iterdir())
