"""What an audit asks and relearns by, against slow references: prompts, compute ratio, foreign text, adapters."""

import importlib.util
from pathlib import Path

import pytest
import torch
from small_language import config

from gradroute.audit.compute import PowerLaw, fitted
from gradroute.audit.foreign import Foreign
from gradroute.audit.leakage import exposed, unlabelled_tokens, worth
from gradroute.audit.lora import adapted
from gradroute.audit.material import FORGET, TEST, Documents
from gradroute.audit.prompting import prompted, prompted_part
from gradroute.audit.questions import EXPOSURE, PROMPTS, RATIO, Questions
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.models.transformer import build_transformer
from gradroute.tasks.language import LanguageModelling


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Documents:
    given = ("finetune=null", "relearn=null", "steps=[train,ablate,evaluate]", "dataset.length=256", "model.layers=1",
             "model.expand=[0]")  # fmt: skip
    task = LanguageModelling(config(tmp_path_factory.mktemp("audit"), "stories_era", *given))
    return Documents(task, "forget", 6, 0)


def test_a_prompt_has_whole_examples_and_only_the_test_document_is_asked(material: Documents) -> None:
    task, part = material.task, prompted_part(material, 1, sample=0)
    assert part is not None
    examples = [own[:-1].tolist() for own in map(task.data.train.corpus.document, material.own.tolist())]
    losses, count = 0.0, 0
    numbers = iter(material.measured[FORGET, TEST].tolist())
    for at, (row, targets) in enumerate(zip(part.packed.tokens, part.packed.targets, strict=True)):
        asked = next(own for own in map(lambda n: task.data.test.corpus.document(n).tolist(), numbers)
                     if targets[targets != IGNORED].tolist() == own[1:])  # fmt: skip
        size = int((part.packed.documents[at] >= 0).sum())
        before = row[: size - len(asked)].tolist()
        assert before in examples and row[:size].tolist() == before + asked
        with torch.no_grad():
            logits = task.model(row[None, :size])[0].log_softmax(-1)
        for place in range(len(before), size - 1):  # slowly, each token of the test document but its first
            losses, count = losses - float(logits[place, row[place + 1]]), count + 1
    assert prompted(material, task.model, part) == pytest.approx(losses / count, rel=1e-5)


def test_what_does_not_apply_is_said(material: Documents) -> None:
    found = Questions.of(material, shots=0, samples=2, baseline=None)
    assert list(found.untried) == [PROMPTS, EXPOSURE, RATIO] and "at 0 updates" in found.untried[RATIO]
    assert list(found.answers(material, material.task.model)) == []


def test_a_curve_is_fitted_and_a_loss_is_worth_the_updates_that_had_it() -> None:
    true = PowerLaw(7.0, 0.3, 40.0)
    points = [(step, true.loss(step)) for step in (50, 100, 200, 400, 800)]
    law = fitted(points)
    assert law is not None
    for step, loss in points:
        assert law.updates(loss) == pytest.approx(step, rel=0.05)
    assert law.updates(true.loss(300)) == pytest.approx(300, rel=0.05) and law.updates(1e9) == 0.001
    assert fitted(points[:3]) is None and fitted([(step, 2.0 + step) for step, _ in points]) is None


def test_a_loss_is_worth_the_tokens_between_two_plain_models() -> None:
    points = [(0, [3.0, 4.0]), (100, [2.0, 3.5]), (400, [1.0, 3.6])]
    assert worth([2.5, 3.75], points) == [50, 50] and worth([1.5, 3.0], points) == [250, 400]
    assert worth([9.0, 9.0], points) == [0, 0] and worth([0.5, 3.5], points)[0] == 400


def test_a_plain_model_sees_a_share_of_the_group_and_all_else(material: Documents) -> None:
    own = exposed(material.task.config, "forget", 0.25)
    task = LanguageModelling(own, material.task.read)
    whole = int(task.data.train.corpus.lengths[task.train_groups == 0].sum())
    assert unlabelled_tokens(material.task, "forget") == 0 < unlabelled_tokens(task, "forget") < 0.4 * whole
    assert own.routing.routes == {} and own.losses.groups["forget"] == 0 and own.seed == material.task.config.seed


def test_foreign_documents_have_the_words_of_the_rest_or_are_a_file(material: Documents, tmp_path: Path) -> None:
    drawn, task = Foreign(material, None, 3, samples=2), material.task
    first, second = (drawn.chosen("foreign", 3, sample) for sample in (0, 1))
    assert len({*first, *second}) == 6  # else the second repetition would be the first one again
    tokens, targets, documents = drawn.batch(drawn.chosen("foreign", 3, 0))
    assert tokens.shape == targets.shape == documents.shape == (3, 256)
    others = task.data.train.corpus.tokens[(task.train_groups != 0)[task.data.train.corpus.documents]]
    seen = tokens[documents >= 0]
    assert set(seen.tolist()) <= set(others.tolist()) and seen.unique().numel() > 20
    (tmp_path / "other.txt").write_text("the dog\n<|endoftext|>\na cat\n")
    given = Foreign(material, tmp_path / "other.txt", 2, samples=1)
    encoded = task.data.tokenizer.encode(["the dog", "a cat"])
    rows = [row.tokens[row.documents >= 0].tolist() for row in given.rows]
    assert rows == [[*tokens, task.data.tokenizer.end] for tokens in encoded]
    with pytest.raises(UserError, match=r"audit\.foreign=.*has 2 documents; give 3"):
        Foreign(material, tmp_path / "other.txt", 3, samples=1)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="gradroute[hf] is not installed")
def test_only_the_attackers_adapter_trains_and_it_begins_with_nothing() -> None:
    model = build_transformer(30, 16, layers=1, width=16, heads=2, hidden=24)
    before, tokens = {n: p.clone() for n, p in model.state_dict().items()}, torch.arange(12)[None]
    own = adapted(model, 4, seed=0)
    trained = {name for name, parameter in own.named_parameters() if parameter.requires_grad}
    assert len(trained) == 12 and all(".attacker." in name for name in trained)  # two of each of six layers
    assert torch.equal(own(tokens), model(tokens)) and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    again = dict(adapted(model, 4, seed=0).named_parameters())
    assert all(torch.equal(parameter, again[name]) for name, parameter in own.named_parameters())
    with pytest.raises(UserError, match=r"audit\.rank=64: no layer is as large"):
        adapted(model, 64, seed=0)
