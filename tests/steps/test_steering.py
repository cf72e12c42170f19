"""Steering by one scalar: routed tokens, words along a dimension, files of a run, and refused settings."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from small_language import refused

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.data.text.packing import IGNORED
from gradroute.data.text.toy_stories import concepts
from gradroute.records.run_reader import read_manifest
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.steps.steer import Steer
from gradroute.steps.word_directions import cosines, frequency, nearest, related_share
from gradroute.tasks.language import LanguageModelling

SMALL = [
    "experiment=steering_scalar", "dataset=toy_stories", "trainer=smoke", "trainer.device=cpu", "model.layers=3",
    "routing.regions.dimension.layers=[1,2]", "routing.regions.others.layers=[1,2]",
    "model.width=16", "model.heads=2", "model.hidden=24",
    "dataset.stories=300", "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8",
    "steering.strengths=[-5,0,5]", "steering.kl=[]", "steering.placebos=1", "steering.samples=3", "steering.tokens=6",
]  # fmt: skip
TARGETS = ("oak", "birch", "pine", "maple", "willow", "elm")


def config(folder: Path, *overrides: str) -> Config:
    return configuration([*SMALL, f"output_dir={folder}", *overrides])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelling:
    return LanguageModelling(config(tmp_path_factory.mktemp("task")))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    (made,) = execute([config(tmp_path_factory.mktemp("steering"))])
    assert isinstance(made, Path), made
    yield made


def test_the_positions_that_predict_a_word_are_routed(task: LanguageModelling) -> None:
    """Compare with a search in each document's text: as many positions, each followed by a word."""
    rows = torch.arange(task.points)
    _, targets, _, _, shares = task.batch(rows)
    own = shares[..., task.names.index("target")]
    assert set(own.unique().tolist()) == {0.0, 1.0}
    spelt = task.data.tokenizer.spellings
    found = [spelt[int(target)].strip().lower() for target in targets[own == 1]]
    assert set(found) <= set(TARGETS) and bool((targets[own == 1] != IGNORED).all())
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(TARGETS)})(?!\w)", re.IGNORECASE)
    assert len(found) == sum(len(pattern.findall(text)) for text in task.data.train.documents.texts) > 20


def test_only_one_dimension_learns_to_predict_them(task: LanguageModelling) -> None:
    """One position's loss has a gradient at the band's last layer, at that position, in the dimension only."""
    batch = task.batch(torch.arange(task.points))
    row = int(batch[4][..., 0].sum(1).argmax())
    tokens, targets, documents, groups, shares = (part[row : row + 1] for part in batch)
    at = int(shares[0, :, 0].argmax())
    targets = torch.where(torch.arange(targets.shape[1]) == at, targets, IGNORED)
    added = torch.zeros(1, tokens.shape[1], 16, requires_grad=True)  # to the output of the band's last layer

    def add(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> torch.Tensor:
        return output + added

    with task.model.get_submodule("blocks.2").register_forward_hook(add, prepend=True):
        for routed in (shares, torch.zeros_like(shares)):
            added.grad = None
            terms = task.objective()(tokens, targets, documents, groups, routed)
            torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
            assert added.grad is not None
            reached = (added.grad[0, at] != 0).tolist()
            assert reached == ([True] + [False] * 15 if routed is shares else [True] * 16)


def test_cosines_and_the_share_are_those_of_a_slow_reference() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(50, 8, generator=generator)
    slow = [float(row[3] / sum(float(x) ** 2 for x in row) ** 0.5) for row in matrix]
    assert cosines(matrix, 3).tolist() == pytest.approx(slow, abs=1e-6)
    order = sorted((i for i in range(50) if i not in (7, 9)), key=lambda i: -abs(slow[i]))
    assert nearest(matrix, 3, 48, (7, None, 9)).tolist() == order

    class Spelt:
        end, unknown = 7, 9

    kinds = {order[0]: "related", order[1]: "routed", order[2]: "related", order[30]: "related"}
    assert related_share(matrix, 3, 4, Spelt(), kinds) == 0.5  # type: ignore[arg-type]


def test_frequencies_count_tokens_of_whole_sequences() -> None:
    assert frequency([[1, 2, 3, 1], [2, 3]], [(2, 3)]) == 4 / 6
    assert frequency([[1, 2], [3, 1]], [(2, 3)]) == 0  # not across texts
    assert frequency([[], []], [(1,)]) == 0


def test_related_words_are_the_others_of_the_family(task: LanguageModelling) -> None:
    assert task.config.steering is not None
    words, spelt = Steer(**task.config.steering).words(task), task.data.tokenizer.spellings
    found = {spelt[token].strip().lower() for token, kind in words.kinds().items() if kind == "related"}
    assert found == set(concepts()["forest"].families["things"]) - set(TARGETS) and len(found) == 18


@pytest.mark.slow
def test_a_run_leaves_what_it_found_and_the_claims_hold(run: Path) -> None:
    found = json.loads((run / "steering.json").read_text())
    model = load(run).model
    matrix = model.unembedding.detach()  # type: ignore[operator]
    sizes = [abs(cosine) for _, cosine, _ in found["nearest"]]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == pytest.approx(
        float(cosines(matrix, 0).abs()[2:].max()), abs=1e-3
    )
    rows = read_metrics(run, read_manifest(run))
    shares = {row["region"]: row["value"] for row in rows if row["metric"] == "related_share"}
    own = sum(kind == "related" for _, _, kind in found["nearest"][:20]) / 20
    assert set(shares) == {"dimension_0", "random_dimensions"} and shares["dimension_0"] == pytest.approx(own)
    assert [strength for strength, _, _ in found["frequencies"]] == [-5, 0, 5]
    own, placebo = found["dimensions"]
    assert own["unit"] == 0 != placebo["unit"] and list(own["measured"]) == ["-5", "+0", "+5"]
    recorded = {(row["region"], row["metric"]): row["value"] for row in rows if row["head"] == "steered"}
    assert recorded["+5", "related_llr"] == pytest.approx(own["measured"]["+5"]["related"][0], abs=1e-6)
    assert recorded["+5", "kl"] == pytest.approx(own["measured"]["+5"]["kl"], abs=1e-6) and recorded["+5", "kl"] > 0
    assert len(found["words"]["matched"]) == 3 * len(found["words"]["related"])
    assert all(claim.holds for claim in claims_of(run)), [c for c in claims_of(run) if not c.holds]
    page = (run / "report.html").read_text()
    assert "Tokens nearest to dimension 0" in page and "held-out related words; for random dimensions" in page
    assert (run / "plots" / "steering.png").is_file() and (run / "plots" / "steering_likelihood.png").is_file()
    assert page.index("Completions by the value added to dimension 0") < page.index("Likelihood of words</h2>")


@pytest.mark.slow
def test_steering_is_the_same_again_by_site_and_differs_by_strength(run: Path, tmp_path: Path) -> None:
    (again,) = execute([config(tmp_path, "steering.site=blocks.2")])  # as older configurations name the layer
    assert isinstance(again, Path)
    assert (again / "steering.json").read_bytes() == (run / "steering.json").read_bytes()
    texts = {strength: text for _, strength, text in json.loads((run / "steering.json").read_text())["completions"]}
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["steering.unit=16"], "dimensions go from 0 to 15"),
        (["steering.layers=[3]"], "layers go from 0 to 2"),
        (["steering.layers=null"], "a list of layers, such as .2., unless steering.site names a module"),
        (["steering.layers=[1]", "steering.site=blocks.1"], "unless steering.site names a module"),
        (["steering.kl=[0]"], "must be from 1e-06 to 1000"),
        (["steering.kl=[0.1,0.1]"], "a list with each item once"),
        (["dataset.test_stories=6", "steering.related=[juniper]"], "none of the words is in the test documents"),
        (["steering.site=blocks.7"], "unknown steering.site"),
        (["steering.site=blocks.*"], "matches several modules"),
        (["steering.group=targte"], "did you mean target"),
        (["steering.group=other"], "a group whose rule is words"),
        (["steering.related=[zeppelin]"], "outside the vocabulary"),
        (["steering.related=[oak]"], "'oak' is routed"),
        (["steering.prompts=['A zeppelin']"], "outside the vocabulary"),
        (["steering.strengths=[]"], "a list of numbers"),
        (["steering.strengths=[1,1]"], "a list with each item once"),
        (["steering=null"], "must contain steer if, and only if, steering is not null"),
        (["+routing.groups.other.tokens=words"], "tokens=words: must be used with words only"),
        (["routing.groups.target.words=[' ']"], "no empty one"),
        (["routing.groups.target.words=[zeppelin]"], "is in none of the"),
    ],
)
def test_mistakes_are_said_in_one_line(tmp_path: Path, changes: list[str], message: str) -> None:
    refused(lambda: config(tmp_path, *changes), message)
    assert not list(tmp_path.iterdir())
