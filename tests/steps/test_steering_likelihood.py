"""Steering's likelihoods: words in documents, log-likelihood ratios and KL against slow references, matched words."""

import json
import math
from contextlib import AbstractContextManager

import pytest
import torch

from gradroute.data.text.corpora import Texts, tokenized
from gradroute.data.text.documents import Documents
from gradroute.data.text.rules import variants
from gradroute.data.text.tokenizing import train_bpe, train_words
from gradroute.models.generation import steered
from gradroute.models.transformer import Transformer
from gradroute.models.transformer_layers import TransformerConfig
from gradroute.routing.sites import Site
from gradroute.steps.steering_likelihood import Likelihoods, Sample, clustered, effects, sample
from gradroute.steps.steering_records import Dimension
from gradroute.steps.word_directions import KINDS, Words, frequency_matched, whole_words

STORIES = [
    "mom and dad saw a cat",
    "mom and mommy ran to dad and sat",
    "a mommy saw mom and the dog ran",
    "dad ran to the cat and the dog sat",
    "the cat saw dad",
] * 3
LAYERS = ("blocks.0", "blocks.1")


def texts() -> Texts:
    documents = Documents(STORIES, {})
    return tokenized(documents, documents.take(range(7)), train_words(STORIES), 12)


@pytest.fixture(scope="module")
def data() -> Texts:
    return texts()


@pytest.fixture(scope="module")
def model(data: Texts) -> Transformer:
    torch.manual_seed(0)
    made = Transformer(TransformerConfig(data.tokenizer.size, 2, 8, 2, 12, positions="rotary", tied=False))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.mul_(8)  # so that predictions are far from uniform
    return made


def words(data: Texts) -> Words:
    lists = {"routed": ["mom"], "related": ["dad", "mommy"], "matched": ["cat", "ran"]}
    return Words(**{kind: {w: variants(data.tokenizer, w) for w in own} for kind, own in lists.items()})


def measure(model: Transformer, data: Texts) -> Likelihoods:
    def steer(unit: int, amount: float) -> AbstractContextManager[None]:
        return steered(model, [Site(name) for name in LAYERS], unit, amount)

    test, train = (sample(part, words(data), data.tokenizer, 12, 1000) for part in (data.test, data.train))
    tokens = {kind: words(data).tokens(kind) for kind in KINDS}
    return Likelihoods(model, steer, data.test, test, train, tokens, torch.device("cpu"))


def log_probabilities(model: Transformer, tokens: list[int], unit: int, amount: float) -> torch.Tensor:
    """Return a document's log-probabilities, steered by hand: the model's layers, one after the other, in float64."""
    double = Transformer(model.config).double()
    double.load_state_dict(model.state_dict())
    added = torch.zeros(8, dtype=torch.float64)
    added[unit] = amount
    with torch.no_grad():
        x = double.embed(torch.tensor([tokens]))
        for block in double.blocks:
            x = block(x, double._rotation(torch.arange(len(tokens))[None]), None) + added
        found: torch.Tensor = (double.norm(x) @ double.unembedding.T)[0].log_softmax(-1)
        return found


def test_ratios_and_kl_are_those_of_a_slow_reference(model: Transformer, data: Texts) -> None:
    """Every document alone, every position in a loop."""
    likelihoods, unit, amount = measure(model, data), 3, 1.5
    ratios: dict[str, list[float]] = {"routed": [], "related": [], "matched": [], "other": []}
    kinds = {"mom": "routed", "dad": "related", "mommy": "related", "cat": "matched", "ran": "matched"}
    divergences, likely = [], {kind: [0.0, 0.0] for kind in KINDS}  # summed probabilities, plain and steered
    for text in STORIES[:7]:
        tokens = [*data.tokenizer.encode([text])[0], data.tokenizer.end]
        plain, moved = (log_probabilities(model, tokens, unit, by) for by in (0.0, amount))
        for at, target in enumerate(tokens[1:]):
            spelt = data.tokenizer.spellings[target].strip()
            ratios[kinds.get(spelt, "other")].append(float(moved[at, target] - plain[at, target]))
            divergences.append(float((plain[at].exp() * (plain[at] - moved[at])).sum()))
            for token, spelling in enumerate(data.tokenizer.spellings):
                if kind := kinds.get(spelling.strip()):
                    likely[kind][0] += float(plain[at, token].exp())
                    likely[kind][1] += float(moved[at, token].exp())
    found = likelihoods.effects(unit, amount)
    assert {kind: effect.count for kind, effect in found.items()} == {kind: len(own) for kind, own in ratios.items()}
    for kind, own in ratios.items():
        assert found[kind].mean == pytest.approx(sum(own) / len(own), abs=1e-4), kind
        assert abs(found[kind].mean) > 1e-3
    assert likelihoods.kl(unit, amount) == pytest.approx(sum(divergences) / len(divergences), rel=1e-3)
    times = {kind: steered / plain for kind, (plain, steered) in likely.items()}
    assert likelihoods.times(unit, amount) == pytest.approx(times, rel=1e-4)
    assert likelihoods.kl(unit, 0.0) == pytest.approx(0.0, abs=1e-6)


def test_the_ratio_of_a_word_is_the_sum_over_its_tokens() -> None:
    stories = ["a tree and a big tree", "the treetop and a tree", "treetops fell on a tree"]
    tokenizer = train_bpe(stories, 258)  # a word is several tokens
    data = tokenized(Documents(stories, {}), Documents(stories, {}), tokenizer, 64)
    own = Words({}, {"tree": variants(tokenizer, "tree")})
    found = sample(data.test, own, tokenizer, 64, 1000)
    corpus, ratio = found.part.corpus, torch.arange(len(data.test.corpus.tokens), dtype=torch.float32)
    spelt = [tokenizer.decode(corpus.tokens[f : f + n].tolist()) for f, n in found.places["related"].tolist()]
    assert spelt == [" tree"] * 4  # neither inside treetop nor at the start of a document
    slow = [sum(float(ratio[f + i - 1]) for i in range(n)) for f, n in found.places["related"].tolist()]
    assert min(n for _, n in found.places["related"].tolist()) > 1
    assert effects(found, ratio)["related"].mean == pytest.approx(sum(slow) / 4)
    assert effects(found, ratio)["routed"].count == 0 and math.isnan(effects(found, ratio)["routed"].mean)


def test_intervals_are_over_documents() -> None:
    """With one word in each document it is the ordinary t-interval; more words of the same documents change nothing."""
    values = torch.tensor([1.0, 2.0, 4.0, 7.0])
    effect = clustered(values, torch.tensor([5, 6, 8, 9]))
    assert effect.mean == 3.5 and effect.half == pytest.approx(3.182446 * values.std().item() / 2, rel=1e-5)
    twice = clustered(values.repeat(2), torch.tensor([5, 6, 8, 9]).repeat(2))
    assert (twice.mean, twice.half) == pytest.approx((effect.mean, effect.half)) and twice.count == 8
    assert math.isnan(clustered(values, torch.zeros(4, dtype=torch.int64)).half)


@pytest.mark.parametrize("sign", [1, -1])
def test_the_strength_found_has_the_kl(model: Transformer, data: Texts, sign: int) -> None:
    likelihoods = measure(model, data)
    for level in (0.001, 0.05):
        amount = likelihoods.strength(2, level, sign / 64)
        assert amount is not None and amount * sign > 0
        assert likelihoods.kl(2, amount) == pytest.approx(level, rel=0.01)
    assert likelihoods.strength(2, 500.0) is None  # the norm bounds what an amount can do


def test_the_direction_is_that_of_the_routed_words_in_training(model: Transformer, data: Texts) -> None:
    likelihoods = measure(model, data)
    for unit in range(8):
        sign = likelihoods.direction(unit, 0.5)
        means = [effects(likelihoods.train, likelihoods.ratio(likelihoods.train, unit, 0.5 * s)) for s in (1, -1)]
        assert sign == (1 if means[0]["routed"].mean >= means[1]["routed"].mean else -1)
    assert {likelihoods.direction(unit, 0.5) for unit in range(8)} == {1.0, -1.0}


def test_a_dimension_is_measured_at_numbers_and_levels(model: Transformer, data: Texts) -> None:
    found = Dimension.measured(measure(model, data), 1, [-2.0, 0.0], [0.05, 0.01, 500.0])
    assert list(found.strengths) == ["-2", "+0", "kl_0.01", "kl_0.05"] and found.unreached == [500.0]
    assert 0 < found.strengths["kl_0.01"] < found.strengths["kl_0.05"]
    assert found.kl["kl_0.05"] == pytest.approx(0.05, rel=0.01) and found.kl["+0"] == pytest.approx(0, abs=1e-6)
    assert found.effects["+0"]["related"].mean == pytest.approx(0, abs=1e-5)
    assert json.loads(json.dumps(found.as_rows(), allow_nan=False))["measured"]["-2"]["strength"] == -2


def test_matched_words_have_the_nearest_counts() -> None:
    counts = {"rare": 3, "near": 9, "also": 11, "much": 50, "dad": 10, "mom": 10, "aunt": 2, "few": 1}
    text = " ".join(word.title() for word, count in counts.items() for _ in range(count))
    tokenizer = train_words([text.lower(), text])
    assert frequency_matched([text], ["aunt", "dad"], ["mom"], tokenizer, each=2) == ["also", "near", "few", "rare"]
    assert frequency_matched([text], ["dad"], [], tokenizer, each=1) == ["mom"]  # not routed here
    known = train_words(["near mom dad few much"])
    assert frequency_matched([text], ["dad"], ["mom"], known, each=2) == ["near", "few"]  # others are no words there


def test_whole_words_are_found_with_and_without_a_space() -> None:
    stories = ['mom said "mom" to mom', "momma and mom's hat"]
    tokenizer = train_bpe(stories, 262)
    data = tokenized(Documents(stories, {}), Documents(stories, {}), tokenizer, 64)
    corpus = data.test.corpus
    found = whole_words(corpus, variants(tokenizer, "mom"), tokenizer.spellings)
    assert [tokenizer.decode(corpus.tokens[f : f + n].tolist()) for f, n in found.tolist()] == ["mom", " mom", " mom"]
    assert corpus.documents[found[:, 0]].tolist() == [0, 0, 1]
    assert whole_words(corpus, [], tokenizer.spellings).shape == (0, 2)


def test_samples_are_the_first_documents_that_fit(data: Texts) -> None:
    def of(positions: int, having: str | None = None) -> Sample:
        return sample(data.train, words(data), data.tokenizer, 12, positions, having)

    lengths = data.train.corpus.lengths
    assert of(int(lengths[:3].sum())).part.documents.texts == STORIES[:3]
    assert of(int(lengths[:3].sum()) - 1).part.documents.texts == STORIES[:2]
    assert of(1).part.documents.texts == STORIES[:1]
    found = of(1000, "routed").part.documents.texts
    assert found == [story for story in STORIES if "mom " in story[1:]]  # nothing predicts a document's first word
    nothing = sample(data.train, Words({}, {}), data.tokenizer, 12, 1000, "related")
    assert nothing.part.documents.texts == STORIES and not len(nothing.places["related"])
