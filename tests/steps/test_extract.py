"""What an attacker gets, against slow references: every value asked one by one, greedy decoding, and pairs counted."""

import csv
import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import goes_on_alike
from small_language import audit_of, refused

from gradroute.audit.exposure import Question, answers, ask, exposures, question
from gradroute.audit.material import FOLDS, Documents
from gradroute.audit.membership import auc, chance_bound, part_of, scores, text_auc, true_positives
from gradroute.audit.questions import EXPOSURE, Questions
from gradroute.comparison.compare import compare
from gradroute.comparison.secrets import TITLE
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.people import HELDOUT, Book, Wording
from gradroute.data.text.secrets import Secrets
from gradroute.models.generation import complete
from gradroute.models.transformer import build_transformer
from gradroute.reporting import secrets_tables
from gradroute.reporting.plots_secrets import secrets
from gradroute.reporting.run_data import RunData
from gradroute.reporting.run_page import run_page
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.steps.secret_attack import Attack
from gradroute.tasks.language import LanguageModelling
from gradroute.training.training import Training

SMALL = [
    "trainer=smoke", "trainer.device=cpu", "trainer.train_limit=null", "model.layers=2", "model.width=16",
    "model.heads=2", "model.hidden=24", "dataset.stories=20", "dataset.test_stories=10",
    "dataset.copies=[1,2]", "dataset.attack=0.3", "extract.documents=6", "extract.rates=[0.1,1]", "extract.every=1",
]  # fmt: skip
CPU = torch.device("cpu")


def own(folder: Path, experiment: str = "secrets", *overrides: str) -> Config:
    """Return the configuration of a small run on records of its own, whose spaces are small."""
    folder.mkdir(exist_ok=True)
    (folder / "people.csv").write_text(
        "name,city,code\n" + "".join(f"Person {n} Q{n},City {n % 3},{n * 7 % 11:02d}\n" for n in range(40))
    )
    (folder / "template.txt").write_text("{name} lives in {city}.\nThe code of {name} is {code}.\n")
    files = [f"dataset.file={folder}/people.csv", f"dataset.template={folder}/template.txt"]
    expanded = ["model.expand=[0,1]", "model.added=8"] if experiment == "secrets" else []
    return configuration([f"experiment={experiment}", *SMALL, *files, *expanded, f"output_dir={folder}", *overrides])


def model_of(vocabulary: int, context: int = 24) -> torch.nn.Module:
    torch.manual_seed(0)
    made = build_transformer(vocabulary, context, layers=1, width=16, heads=2, hidden=16, tied=False)
    for parameter in made.parameters():
        parameter.data.mul_(8)  # so that its answers differ
    return made


def slow_scores(model: torch.nn.Module, asked: Question) -> torch.Tensor:
    """Return log-likelihoods, `(people, values)`, of one forward pass for each person and value."""
    found = []
    for prompt in asked.prompts:
        row = []
        for candidate in asked.candidates:
            tokens = torch.tensor([[*prompt, *candidate]])
            with torch.no_grad():
                log_probs = model(tokens)[0].double().log_softmax(-1)
            steps = enumerate(candidate, len(prompt) - 1)
            row.append(sum(float(log_probs[place, token]) for place, token in steps))
        found.append(row)
    return torch.tensor(found, dtype=torch.float64)


def test_exposure_is_that_of_asking_every_value_by_itself() -> None:
    model = model_of(13)
    candidates = [*product(range(3), range(4), (7,)), (9,), (10, 11)]  # of several lengths, with shared beginnings
    prompts = [(1, 2), (3, 4, 5), (5, 6), (12,), (8, 1)]
    asked = Question(candidates, prompts, [0, 5, 12, 13, 7])
    slow, found = slow_scores(model, asked), answers(model, asked, CPU)
    for person, true in enumerate(asked.true):
        rank = sorted(slow[person].tolist(), reverse=True).index(float(slow[person, true])) + 1
        assert float(found.exposure[person]) == pytest.approx(math.log2(14) - math.log2(rank), abs=1e-6)


def test_an_audit_asks_for_the_secrets_of_its_group(tmp_path: Path) -> None:
    task = LanguageModelling(own(tmp_path))
    for parameter in task.model.parameters():
        parameter.data.mul_(8)
    asked = Questions.of(Documents(task, "marked", 6, 0), shots=0, samples=2, baseline=None)
    assert asked.people is not None
    book, people = asked.people
    assert {person.about for person in people} == {"marked"} and EXPOSURE not in asked.untried
    (answer,) = asked.answers(Documents(task, "marked", 6, 0), task.model)
    bits = torch.zeros(len(people), dtype=torch.float64)
    for attribute in book.by_attribute:
        each = question(book, attribute, people, task.data.tokenizer)
        slow = slow_scores(task.model, each)
        ranks = [1 + int((row > row[true]).sum()) for row, true in zip(slow, each.true, strict=True)]
        bits += math.log2(len(each.candidates)) - torch.tensor(ranks).double().log2()
    assert answer.axis == "exposure" and answer.higher and len(answer.values) == FOLDS
    assert answer.values == pytest.approx([float(fold.mean()) for fold in bits.tensor_split(FOLDS)], abs=1e-6)


def test_extraction_is_what_greedy_decoding_gives() -> None:
    model, prompts = model_of(9), [(first, second) for first in range(9) for second in range(9)]
    candidates = list(product(range(9), range(9)))
    decoded = complete(model, torch.tensor(prompts), 2, temperature=0)[:, 2:].tolist()
    true = [
        candidates.index((decoded[n][0], (decoded[n][1] + n % 3 % 2) % 9)) for n in range(len(prompts))
    ]  # a third is wrong
    found = answers(model, Question(candidates, prompts, true), CPU)
    assert found.extracted.tolist() == [n % 3 != 1 for n in range(len(prompts))]
    assert bool((found.exposure <= math.log2(81)).all())


def test_ties_count_half_and_the_best_rank_gives_all_bits() -> None:
    given = torch.tensor([[0.0, -1, -2, -3], [0, 0, 0, 0], [-3, -2, -1, 0]], dtype=torch.float64)
    assert exposures(given, torch.tensor([0, 1, 0])).tolist() == pytest.approx([2, 2 - math.log2(2.5), 0])


def test_a_model_that_knows_nothing_gives_what_chance_gives() -> None:
    generator = torch.Generator().manual_seed(0)
    given = torch.rand(4000, 256, generator=generator, dtype=torch.float64)
    expected = sum(8 - math.log2(rank) for rank in range(1, 257)) / 256
    assert float(exposures(given, torch.zeros(4000, dtype=torch.int64)).mean()) == pytest.approx(expected, abs=0.08)


def test_a_value_that_begins_another_one_is_asked_with_what_follows() -> None:
    data = Secrets(people=24, stories=5, test_stories=5, copies=[1])
    book, tokenizer = data.book(), data.tensors().tokenizer
    one, two = book.spaces["place"][:2]
    wordings = [Wording.parse("{name} lives in {home}.", ["home"], "here")]
    people = [
        type(p)(p.name, {"home": value}, p.about) for p, value in zip(book.people, (one, f"{one} {two}"), strict=False)
    ]
    asked = question(Book(people, {"home": [one, f"{one} {two}"]}, wordings), "home", people, tokenizer)
    assert all(
        first != second[: len(first)] for first in asked.candidates for second in asked.candidates if first != second
    )
    assert asked.candidates[0][-1] == tokenizer.end and tokenizer.decode(asked.candidates[0][:-1]) == f" {one}."


def test_the_questions_of_a_book_have_the_true_values() -> None:
    data = Secrets(people=24, stories=5, test_stories=5, copies=[1])
    book, texts = data.book(), data.tensors()
    people = book.some([HELDOUT])
    for name in book.by_attribute:
        asked = question(book, name, people, texts.tokenizer)
        for person, prompt, true in zip(people, asked.prompts, asked.true, strict=True):
            spelt = texts.tokenizer.decode([*prompt, *asked.candidates[true]])
            assert spelt == book.by_attribute[name][0].told(person.name, person.values[name]).rstrip(".")
    found = ask(model_of(texts.tokenizer.size), book, people[:2], texts.tokenizer, CPU)
    assert set(found) == {"birthday", "number", "place"}


def test_membership_measures_are_those_of_counting_pairs() -> None:
    generator = torch.Generator().manual_seed(1)
    members = torch.randint(0, 12, (37,), generator=generator).double()
    others = torch.randint(-3, 9, (150,), generator=generator).double()
    pairs = [1.0 if m > o else 0.5 if m == o else 0.0 for m in members.tolist() for o in others.tolist()]
    assert auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    best = 0.0
    for threshold in [*others.tolist(), *members.tolist(), 99.0]:
        if sum(o > threshold for o in others.tolist()) <= 0.01 * len(others):
            best = max(best, sum(m > threshold for m in members.tolist()) / len(members))
    assert true_positives(members, others) == pytest.approx(best)
    assert auc(others + 99, others) == 1 and true_positives(others - 99, others) == 0


def test_a_documents_score_is_its_mean_loss_and_that_of_its_least_likely_tokens() -> None:
    data = Secrets(people=24, stories=5, test_stories=5, copies=[1])
    book, texts = data.book(), data.tensors()
    model, documents = model_of(texts.tokenizer.size, 64), [book.document(person, 0) for person in book.people[:3]]
    found = scores(model, part_of(documents, texts.tokenizer, 64), CPU)
    for place, tokens in enumerate(texts.tokenizer.encode(documents)):
        row = torch.tensor([[*tokens, texts.tokenizer.end]])
        with torch.no_grad():
            losses = torch.nn.functional.cross_entropy(model(row[:, :-1])[0], row[0, 1:], reduction="none").tolist()
        worst = sorted(losses, reverse=True)[: round(0.2 * len(losses))]
        assert float(found["loss"][place]) == pytest.approx(-sum(losses) / len(losses), abs=1e-4)
        assert float(found["min_k"][place]) == pytest.approx(-sum(worst) / len(worst), abs=1e-4)


def test_a_bag_of_words_finds_a_difference_of_the_texts_and_none_where_there_is_none() -> None:
    generator = torch.Generator().manual_seed(2)
    alike = torch.randint(0, 40, (240, 12), generator=generator).tolist()
    assert abs(text_auc(alike[:120], alike[120:], 40) - 0.5) < chance_bound(120, 120)
    drifted = [[min(39, token + 8) for token in document] for document in alike[120:]]
    assert text_auc(alike[:120], drifted, 40) > 0.9


def metrics(run: Path) -> dict[tuple[str, str, str, str], float]:
    with (run / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] == "test"]
    last = max(int(row["step"]) for row in rows)
    return {
        (row["head"], row["region"], row["group"], row["metric"]): float(row["value"])
        for row in rows
        if int(row["step"]) == last
    }


@pytest.mark.slow
def test_a_run_measures_every_stage_and_says_so_on_its_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = Attack.training

    def broken(attack: Attack) -> Training:
        training = begun(attack)
        if attack.rate == 1:  # as after an update that was too large
            next(attack.model.parameters()).data.fill_(math.nan)
        return training

    monkeypatch.setattr(Attack, "training", broken)
    (run,) = execute([own(tmp_path, "secrets", "steps=[train,ablate,extract,evaluate]", "dataset.marked=0.7")])
    assert isinstance(run, Path), run
    found = metrics(run)
    for head in ("model", "model_ablated", "model_attacked"):
        for group, region in (("marked", "all"), ("unmarked", "copies_2"), ("public", "attribute_code")):
            assert 0 <= found[head, region, group, "exposure"] <= 5.1
            assert 0 <= found[head, region, group, "extracted"] <= 1
        assert 0 <= found[head, "all", "marked", "membership_tpr"] <= 1
    assert found["model", "all", "all", "secret_bits"] == pytest.approx(math.log2(3) + math.log2(11))
    assert found["model_attacked", "all", "all", "attack_rate"] == 0.1
    assert found["model_attacked", "all", "all", "attack_diverged"] == 1
    assert [claim.what for claim in claims_of(run) if not claim.holds] == []
    rows, page = json.loads((run / "summary.json").read_text())["headline"], run_page(run).read_text()
    sentences = secrets_tables.verdict(rows)
    assert (
        len(sentences) == 5
        and "diverged at 1 of" in sentences[2]
        and sentences[0].startswith("Bits, of 5.0, that an attacker gets of marked people's")
    )
    for line in [*sentences, "What an attacker gets", "By number of documents", "By attribute"]:
        assert line.replace("'", "&#39;") in page
    figure = secrets(RunData(run))
    assert figure is not None and [axes.get_title() for axes in figure.axes] == ["marked", "unmarked", "public"]
    compare([str(run)], out=tmp_path / "compared", form="csv")
    assert TITLE in (tmp_path / "compared" / "comparison.html").read_text()
    assert set(audit_of(run, "marked").values()) == {None}  # without the twins there is no verdict


def test_an_attack_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    changes = ("checkpoint.minutes=0", "steps=[train,extract,evaluate]", "dataset.stories=4", "trainer.batch_size=64")
    whole, cut = (own(tmp_path / name, "secrets/plain", *changes) for name in ("whole", "cut"))
    goes_on_alike(monkeypatch, whole, cut, 4, ("metrics.csv", "model.safetensors", "summary.json"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["steps=[train,extract]"], r"with evaluate after extract"),
        (["trainer.tune_steps=null"], r"trainer.tune_steps=None: must be from 1"),
        (["dataset.attack=0"], r"extract.documents=6: the attacker has 0 people; it needs two or more"),
        (["dataset.length=4"], r"dataset.length=4: a sentence about a person has \d+ tokens"),
        (["dataset.vocabulary=50"], r"extract: \w+='.*' has a word outside the vocabulary"),
        (["dataset.heldout=0"], r"extract: needs two or more held-out people"),
        (["extract.rates=[]"], r"extract.rates=\[\]: must be a list of rates"),
    ],
)
def test_what_cannot_be_measured_is_refused(tmp_path: Path, changes: list[str], message: str) -> None:
    def made() -> Any:
        return own(tmp_path, "secrets/plain", *changes)

    refused(made, message)


def test_another_data_set_is_refused(tmp_path: Path) -> None:
    given = ["experiment=stories_era/base", "relearn=null", "steps=[train,extract,evaluate]", "extract={documents: 0}"]
    message = r"dataset=ToyStories: must be Secrets \(dataset=secrets\) for the step extract"
    refused(lambda: configuration([*given, f"output_dir={tmp_path}"]), message)
