"""A language model as a run: its loss against a reference, its steps, resuming to the bit, and refused settings."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from interrupted import interrupted

from gradroute import load
from gradroute.commands.tokens import main as tokens_main
from gradroute.comparison.compare import compare
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.language import LanguageModelling

SMALL = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "model.layers=2",
    "model.width=16", "model.heads=2", "model.hidden=24",
    "model.expand=[0,1]", "model.added=8", "routing.regions.original.units='0:24'",
    "routing.regions.added.units='24:32'",
    "dataset.stories=60", "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8",
    "finetune.documents=[4]", "relearn.documents=[2,4]", "relearn.samples=2", "relearn.every=1",
]  # fmt: skip
FILES = ("metrics.csv", "ledger.csv", "model.safetensors", "summary.json", "tokenizer.json", "tokens.json",
         "completions.json")  # fmt: skip


def config(folder: Path, *overrides: str) -> Config:
    return configuration([*SMALL, f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One finished run with every step."""
    (made,) = execute([config(tmp_path_factory.mktemp("language"))])
    assert isinstance(made, Path), made
    yield made


def test_the_loss_is_the_mean_over_tokens_and_routes_weigh_each_token(tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, "losses.l1.original=0", "losses.l1.added=0", "dataset.stories=400"))
    every = task.batch(torch.arange(task.points))[4]
    rows = every[..., 0].amax(1).argsort(descending=True)[:4]  # those with the most routed tokens
    tokens, targets, documents, groups, shares = task.batch(rows)
    terms = task.objective()(tokens, targets, documents, groups, shares)
    loss = torch.stack([value * weight for value, weight in terms.values()]).sum()
    loss.backward()
    up: Any = task.model.get_submodule("blocks.0.mlp.up")
    down: Any = task.model.get_submodule("blocks.0.mlp.down")
    ours = {"up": up.weight.grad.clone(), "down": down.weight.grad.clone()}
    # the reference: every token's loss by itself, masked by detach at both layers
    task.model.zero_grad()
    weight = 1 - 1.75 * shares[..., 0]  # of the original units: w + (1 - w) * -0.75
    mask = torch.ones(*tokens.shape, 32)
    mask[..., :24] = weight[..., None]

    def masked(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * mask + (output * (1 - mask)).detach()

    hooks = [task.model.get_submodule(f"blocks.{i}.mlp.act").register_forward_hook(masked) for i in range(2)]
    logits = task.model(tokens, documents)
    for hook in hooks:
        hook.remove()
    losses = [
        torch.nn.functional.cross_entropy(logits[i, j][None], targets[i, j][None])
        for i in range(len(tokens))
        for j in range(tokens.shape[1])
        if targets[i, j] != IGNORED
    ]
    reference = torch.stack(losses).mean()
    reference.backward()
    assert loss.item() == pytest.approx(reference.item(), rel=1e-6)
    for name, module in (("up", up), ("down", down)):
        torch.testing.assert_close(ours[name], module.weight.grad, rtol=1e-4, atol=1e-7)
    assert float(shares.max()) > 0.5 and float(weight.min()) < 0


def test_the_published_model_is_routed_where_it_is_expanded(tmp_path: Path) -> None:
    sizes = ["width=16", "heads=2", "hidden=24", "added=8"]
    small = [f"model.{size}" for size in sizes]
    shared = [given for given in SMALL if not given.startswith("model.expand")]
    made = configuration([*shared, f"output_dir={tmp_path}", "model=transformer_28m", "model.layers=8", *small])
    sites = {site.name for site in LanguageModelling(made).router.sites}
    assert sites == {f"blocks.{layer}.mlp.act" for layer in range(5)}


def test_a_group_whose_loss_has_weight_0_does_not_count(tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, "losses.groups.forget=0", "losses.l1.original=0", "losses.l1.added=0"))
    batch = task.batch(torch.arange(4))
    terms = task.objective()(*batch)
    weights = {term.group: float(weight) for term, (_, weight) in terms.items()}
    assert weights == {"forget": 0.0, "retain": 1.0}


def test_the_training_loss_of_a_group_is_the_mean_over_the_batches_that_have_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model stays as it is, so that the batches' losses can be computed again."""
    still = ["trainer.batch_size=2", "trainer.lr=1e-12", "trainer.epochs=1", "trainer.precision=float32"]
    steps = ["steps=[train,evaluate]", "finetune=null", "relearn=null", "losses.l1={}"]
    own, batch, chosen = config(tmp_path, *still, *steps), LanguageModelling.batch, list[torch.Tensor]()

    def noted(task: LanguageModelling, rows: torch.Tensor) -> tuple[torch.Tensor, ...]:
        chosen.append(rows)
        return batch(task, rows)

    with monkeypatch.context() as patched:
        patched.setattr(LanguageModelling, "batch", noted)
        (made,) = execute([own])
    assert isinstance(made, Path), made
    task, rows = LanguageModelling(own), [row for row in read_metrics(made) if row["split"] == "train"]
    for number, name in enumerate(task.names):
        losses = []
        for tokens, targets, documents, groups, _ in (batch(task, two) for two in chosen):
            mine = (groups == number) & (targets != IGNORED)
            if mine.any():
                with torch.no_grad():
                    losses.append(torch.nn.functional.cross_entropy(task.model(tokens, documents)[mine], targets[mine]))
        found = [row["value"] for row in rows if row["group"] == name]
        assert found == [pytest.approx(float(sum(losses)) / len(losses), rel=1e-5)]
        assert name != "forget" or 0 < len(losses) < len(chosen)


@pytest.mark.slow
def test_every_stage_is_measured_and_the_claims_hold(run: Path) -> None:
    rows = [row for row in read_metrics(run) if row["split"] == "test" and row["metric"] == "cross_entropy"]
    heads = {(row["head"], row["group"]) for row in rows}
    stages = ("model", "model_ablated", "model_finetuned", "model_relearned_2", "model_relearned_4")
    assert heads == {(stage, group) for stage in stages for group in ("forget", "retain")}
    relearned = [r for r in read_metrics(run) if r["split"] == "validation" and r["head"] == "model_relearned_4"]
    assert {row["region"] for row in relearned} == {"sample_0", "sample_1"}
    assert {row["step"] for row in relearned} == {0, 1, 2}
    claims = list(claims_of(run, replay="all"))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    plots = {path.stem for path in (run / "plots").glob("*.png")}
    assert {"stages", "relearning", "training_curves", "mask", "ledger"} <= plots


def test_a_run_shows_its_tokens_and_documents(run: Path) -> None:
    """The run's folder and page have as many as GR table 3."""
    found = json.loads((run / "tokens.json").read_text())
    rows, html = found["tokens"], (run / "report.html").read_text()
    assert {(row[0], row[1]) for row in rows} == {("forget", "most"), ("forget", "least")}
    weights = [row[4] for row in rows if row[1] == "most"]
    assert weights == sorted(weights) and weights[0] < 0.1 and all(row[3] >= 10 for row in rows)
    assert [given["group"] for given in found["documents"]] == ["forget"] * 2 + ["retain"] * 2
    assert html.count('<p class="document">') == 4 and "The most and the least routed tokens" in html
    by_group = {given["group"]: max(share for _, share in given["tokens"]) for given in found["documents"]}
    assert by_group["forget"] > 0.2 and by_group["retain"] == 0
    assert html.count("<mark ") == sum(share > 0 for given in found["documents"] for _, share in given["tokens"])


def test_the_tokens_are_shown_without_training(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command line shows what the run wrote."""
    monkeypatch.setattr(sys, "argv", ["gradroute-tokens", *SMALL, f"output_dir={tmp_path}"])
    with pytest.raises(SystemExit) as ended:
        tokens_main()
    out = capsys.readouterr().out
    (page,) = (tmp_path / "stories_era").iterdir()
    assert ended.value.code == 0 and out.splitlines()[-1] == str(page) and page.suffix == ".html"
    rows = json.loads((run / "tokens.json").read_text())["tokens"]
    assert all(row[2].replace(" ", "␣") in out for row in rows)
    html, whole = page.read_text(), (run / "report.html").read_text()
    for begin, end in (("<h2>The most and the least", "</table>"), ("<h2>Documents, coloured", "<script>")):
        shown = html.split(begin)[1].split(end)[0].split("<details>")[0]
        assert shown.strip() and shown.strip() in whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["experiment=mnist_split"], "images have no tokens; use a language model"),
        ([*SMALL, "routing.groups.forget.tokens=all"], "no group weighs tokens; set tokens: frequent"),
        ([*SMALL, "trainer.lr=-1"], "trainer.lr=-1.0: must be from"),
    ],
)
def test_mistakes_in_showing_tokens(
    change: list[str], message: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["gradroute-tokens", *change])
    with pytest.raises(SystemExit) as ended:
        tokens_main()
    assert ended.value.code == 2 and message in capsys.readouterr().err


def test_completions_are_those_of_a_slow_reference(tmp_path: Path) -> None:
    """At every stage, append the most likely token until the document or the requested length ends."""
    task = LanguageModelling(config(tmp_path, "completions.temperature=0", "completions.tokens=12"))
    (ablation,) = task.ablations()
    task.make("finetuned")
    for parameter in task.made["finetuned"].parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    rows = json.loads(task.texts()["completions.json"])
    assert task.config.completions is not None
    prompts = [(group, prompt) for group, own in task.config.completions["prompts"].items() for prompt in own]
    heads = ["model", "model_ablated", "model_finetuned"]
    assert [(r["head"], r["group"], r["prompt"]) for r in rows] == [(h, *p) for h in heads for p in prompts]
    tokenizer = task.data.tokenizer
    with ablation.applied(task.model) as ablated, torch.no_grad():
        models = [m for m in (task.model, ablated, task.made["finetuned"]) for _ in prompts]
        for row, model in zip(rows, models, strict=True):
            tokens = tokenizer.encode([row["prompt"]])[0]
            text: list[int] = []
            while len(text) < 12 and tokenizer.end not in text:
                text.append(int(model(torch.tensor([(tokens + text)[-48:]]))[0, -1].argmax()))
            assert row["text"] == tokenizer.decode([token for token in text if token != tokenizer.end])


def test_completions_differ_by_seed_and_sample_and_not_otherwise(tmp_path: Path) -> None:
    def rows(*changes: str) -> list[dict[str, str]]:
        task = LanguageModelling(config(tmp_path, "completions.samples=2", "steps=[train,evaluate]",
                                           "finetune=null", "relearn=null", *changes))  # fmt: skip
        found: list[dict[str, str]] = json.loads(task.texts()["completions.json"])
        return found

    first, other = rows(), rows("seed=1")
    assert first == rows() and [r["text"] for r in first] != [r["text"] for r in other]
    assert len(first) == 8 and first[0]["prompt"] == first[1]["prompt"] and first[0]["text"] != first[1]["text"]


def test_a_run_is_loaded_and_compared(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load(run)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    assert loaded.model(tokens).shape[2] == json.loads((run / "figures.json").read_text())["vocabulary"]
    compare([str(run)], form="csv")
    assert "model_relearned_4,all,forget" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 9, 16])
def test_a_run_goes_on_to_the_bit(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Interrupted in the training, in fine-tuning, and in relearning."""
    own = config(tmp_path, "checkpoint.minutes=0", "steps=[train,ablate,finetune,relearn,evaluate]")
    (cut,) = interrupted(monkeypatch, [own], number)
    (again,) = execute([own], folder=cut)
    assert again == cut
    for name in FILES:
        assert (cut / name).read_bytes() == (run / name).read_bytes(), name


def test_documents_of_a_file(tmp_path: Path) -> None:
    stories = [f"A {thing} was in the {place}." for thing in ("dog", "cat", "owl") for place in ("tree", "house") * 4]
    (tmp_path / "stories.txt").write_text("\n<|endoftext|>\n".join(stories))
    changes = ["dataset=text", f"dataset.files={tmp_path}/stories.txt", "dataset.test_stories=8",
               "dataset.stories=null", "dataset.tokenizer=words", "dataset.vocabulary=null"]  # fmt: skip
    texts = build(config(tmp_path, *changes).dataset, "dataset").tensors()
    assert len(texts.train.documents) == 16 and len(texts.test.documents) == 8


MISTAKES = [
    (["model.expand=[0,2]"], r"model.expand=2: must be from 0 to 1"),
    (["routing.regions.added.units='24:40'"], "added"),
    (["routing.groups.forget.words=[xylophone]"], "is in none of the"),
    (["routing.groups.forget.words=[the]"], "is in all of the"),
    (["routing.groups.forget.words=[]"], "routing.groups.forget=.*must be exactly one rule"),
    (["ablation=zero"], "ablation=zero: must be remove or reinitialise"),
    (["relearn=null"], "steps=.*must contain relearn if, and only if, relearn is not null"),
    (["relearn.group=nobody"], "unknown value of relearn.group"),
    (["dataset.files=x"], "unknown key 'dataset.files'; ToyStories takes: concept, share"),
    (["model.heads=3"], "width=16 is not a multiple of heads=3"),
    (["trainer.batches=by_group"], "trainer.batches=by_group: must be mixed"),
    (["completions.prompts.forget=[a xylophone]"], "forget: 'a xylophone' has a word outside the vocabulary; use wor"),
    (["completions.prompts.forgt=[a]"], "unknown value of completions.prompts: 'forgt'; did you mean forget?"),
    (["completions.prompts.forget=['']"], r"completions.prompts.forget=\[''\]: must be a list of prompts, none empty"),
    (["completions.prompts.forget=a"], "completions.prompts.forget=a: must be a list"),
    (["completions.tokens=0"], "completions.tokens=0: must be from 1 to 10000"),
    (["completions.temperature=-1"], "completions.temperature=-1.0: must be from 0 to 100"),
    (["completions.samples=0"], "completions.samples=0: must be from 1 to 1000"),
    (["stack=2"], "stack=2: cannot be used with model gradroute.models.transformer.build_tran"),
    (
        ["model.width=65536", "model.heads=1", "model.layers=60"],
        r"model.width=65536, .*: \d+\.\d GiB are needed and the machine has \d+\.\d; lower model.width or",
    ),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[" ".join(changes) for changes, _ in MISTAKES])
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        (end,) = execute([config(tmp_path, *changes)])
        raise end if isinstance(end, Exception) else AssertionError("nothing was refused")


@pytest.mark.parametrize("key", ["finetune", "relearn"])
def test_more_documents_than_a_group_has_are_refused_before_anything_is_trained(tmp_path: Path, key: str) -> None:
    group = {"finetune": "retain", "relearn": "forget"}[key]
    (end,) = execute([config(tmp_path, f"{key}.documents=[2,1000]")])
    assert isinstance(end, UserError) and not list(tmp_path.iterdir())
    found = re.fullmatch(
        rf"{key}.documents=\[2, 1000\]: group '{group}' has (\d+) documents to train on; use at most that many",
        str(end),
    )
    task = LanguageModelling(config(tmp_path))
    assert found and int(found[1]) == int((task.train_groups == task.names.index(group)).sum())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("model=autoencoder", "Autoencoder is for reconstruction, and task= is language; give task=reconstruction, or"),
        ("model=resnet", "SplitResNet is for classification, and task= is language; give task=classification, or"),
        ("dataset=mnist", "dataset: MNIST has no documents, .*; give dataset=toy_stories, dataset=text, or"),
        ("task=reconstruction", "build_transformer is for language, and task= is reconstruction; give task=language"),
    ],
)
def test_what_is_for_another_task_is_refused(change: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        configuration(["experiment=stories_era", change])


@pytest.mark.parametrize(
    "given", [["~completions.prompts"], [f"completions.prompts.{group}=[]" for group in ("forget", "retain")]]
)
def test_there_may_be_no_prompts(tmp_path: Path, given: list[str]) -> None:
    (made,) = execute([config(tmp_path, *given, "steps=[train,ablate,evaluate,report]",
                              "finetune=null", "relearn=null")])  # fmt: skip
    assert isinstance(made, Path), made
    assert json.loads((made / "completions.json").read_text()) == [] and (made / "report.html").is_file()
