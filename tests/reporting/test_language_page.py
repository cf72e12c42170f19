"""Sentences on a language model's page; untrusted content is refused or escaped."""

import json
from pathlib import Path
from typing import Any

import pytest

from gradroute.errors import UserError
from gradroute.reporting.language_tables import (
    coloured_documents,
    completion_table,
    final_stage,
    read_completions,
    read_tokens,
    token_table,
    verdict,
)
from gradroute.reporting.page import Page, Table

CONFIG = {"relearn": {"group": "forget"}, "routing": {"routes": {"retain": {}}}}
EVIL = "<script>alert('x')</script>"
MANIFEST: dict[str, Any] = {"state": "running", "files": {}}
TOKENS = {
    "tokens": [["forget", "most", EVIL, 12, 0.25]],
    "documents": [{"number": 3, "group": EVIL, "tokens": [[EVIL, 0.5], [" a", 0]]}],
}
ROW = {"prompt": EVIL, "group": EVIL, "head": "model, dimension 0 +10", "text": EVIL}


def rows(**losses: tuple[float, float]) -> list[dict[str, Any]]:
    """Return final rows from the loss on forget and on retain of each head."""
    return [
        {"head": head, "group": group, "metric": "cross_entropy", "value": value}
        for head, pair in losses.items()
        for group, value in zip(("forget", "retain"), pair, strict=True)
    ]


def test_the_verdict_says_what_was_unlearned_kept_and_paid() -> None:
    stages = {"model": (2.0, 1.5), "model_ablated": (3.1, 1.7), "model_finetuned": (3.0, 1.53)}
    relearned = {"model_relearned_4": (2.8, 1.5), "model_relearned_64": (2.25, 1.5), "model_relearned_16": (2.4, 1.5)}
    assert verdict(rows(**relearned, **stages), CONFIG) == [
        "Unlearning: after ablation and fine-tuning the loss on forget rose by 1.000 nats per token, from 2.000 to "
        "3.000.",
        "Robust unlearning: relearning from 64 documents brings the loss on forget to 2.250 at the lowest, 0.250 above "
        "the trained model's, 25% of the rise.",
        "Cost: after ablation and fine-tuning the loss on retain rose by 0.030 nats per token, from 1.500 to 1.530.",
    ]


def test_the_verdict_says_what_did_not_happen() -> None:
    found = verdict(rows(model=(2.0, 1.5), model_ablated=(1.9, 1.5), model_relearned_4=(1.8, 1.4)), CONFIG)
    assert found == [
        "No unlearning: after ablation the loss on forget fell by 0.100 nats per token, from 2.000 to 1.900.",
        "No robust unlearning: relearning from 4 documents brings the loss on forget to 1.800 at the lowest, 0.200 "
        "below the trained model's.",
        "Cost: after ablation the loss on retain stayed at 1.500 nats per token.",
    ]
    (line, *_) = verdict(rows(model=(2.0, 1.5), model_finetuned=(2.1, 1.5)), {"routing": {"routes": {"forget": {}}}})
    assert line.startswith("Unlearning: after fine-tuning the loss on forget rose by 0.100")


@pytest.mark.parametrize("config", [None, [], {"relearn": 1, "routing": []}, {"routing": {"routes": {"other": 1}}}])
def test_nothing_is_said_of_what_is_not_there(config: Any) -> None:
    assert verdict(rows(model=(2.0, 1.5), model_ablated=(3.0, 1.5)), config) == []
    assert verdict(rows(model=(2.0, 1.5)), CONFIG) == []


def test_everything_that_is_shown_is_escaped(tmp_path: Path) -> None:
    (tmp_path / "tokens.json").write_text(json.dumps(TOKENS))
    (tmp_path / "completions.json").write_text(json.dumps([ROW]))
    tokens, completed = read_tokens(tmp_path, MANIFEST), read_completions(tmp_path, MANIFEST)
    assert tokens is not None
    tables = [Table(*token_table(tokens)), Table(*completion_table(completed), long=True)]
    html = Page("title", [], tables, documents=coloured_documents(tokens)).html()
    assert EVIL not in html and html.count("&lt;script&gt;") == 6
    assert html.count('<mark style="--share: 0.5" title="weight 0.500">') == 1 and "model, dimension 0 +10" in html


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tokens.json", []),
        ("tokens.json", {"tokens": []}),
        ("tokens.json", TOKENS | {"tokens": [["forget", "most", "a", 12]]}),
        ("tokens.json", TOKENS | {"tokens": [["forget", "most", "a", 12, 1.5]]}),
        ("tokens.json", TOKENS | {"tokens": [["forget", "many", "a", 12, 0.5]]}),
        ("tokens.json", TOKENS | {"tokens": [["forget", "most", 5, 12, 0.5]]}),
        ("tokens.json", TOKENS | {"documents": [{"number": 1, "group": "a", "tokens": [["a", "0;color:red"]]}]}),
        ("tokens.json", TOKENS | {"documents": [{"number": "1", "group": "a", "tokens": []}]}),
        ("tokens.json", TOKENS | {"documents": [5]}),
        ("completions.json", {}),
        ("completions.json", [["a"]]),
        ("completions.json", [ROW | {"text": None}]),
        ("completions.json", [ROW | {"text": "x" * 200_000}]),
        ("completions.json", [ROW] * 20_000),
    ],
)
def test_what_is_not_as_we_write_it_is_refused(tmp_path: Path, name: str, content: Any) -> None:
    (tmp_path / name).write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"{name}: damaged \(no rows of"):
        (read_tokens if name == "tokens.json" else read_completions)(tmp_path, MANIFEST)


def test_a_run_without_them_has_none(tmp_path: Path) -> None:
    assert read_tokens(tmp_path, MANIFEST) is None and read_completions(tmp_path, MANIFEST) == []


def test_heads_of_any_name_stand_side_by_side_by_prompt_and_sample() -> None:
    def row(prompt: str, head: str, text: str) -> dict[str, str]:
        return {"prompt": prompt, "group": "forget", "head": head, "text": text}

    found = [row("a", "x +10", "1"), row("a", "x +10", "2"), row("a", "model", "3"), row("b", "model", "4")]
    _, columns, table, _ = completion_table(found)
    assert columns == ["group", "prompt", "x +10", "model"]
    assert table == [["forget", "a", "1", "3"], ["forget", "a", "2", ""], ["forget", "b", "", "4"]]


@pytest.mark.parametrize(
    ("heads", "last"),
    [
        (["model", "model_ablated", "model_finetuned"], "model_finetuned"),
        (["model_finetuned", "model"], "model_finetuned"),
        (["model", "model, dimension 0 +10", "model, dimension 0 -10"], "model"),
        (["model", "model_ablated, top", "model_ablated, bottom"], "model"),
        (["other", "another"], "another"),
    ],
)
def test_the_last_stage(heads: list[str], last: str) -> None:
    found = [{"prompt": "a", "group": "forget", "head": head, "text": head} for head in heads]
    assert [row["text"] for row in final_stage(found)] == [last]


def test_no_completions_have_no_last_stage() -> None:
    assert final_stage([]) == []
