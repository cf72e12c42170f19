"""Token rules: which documents, which tokens, how much of them, and that the mask sits where a token is predicted."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from gradroute import Region, Router
from gradroute.config.schema import GroupConfig, NoiseConfig, RoutingConfig
from gradroute.data.groups import Part, assign
from gradroute.data.text import rules
from gradroute.data.text.display import coloured, ranked
from gradroute.data.text.documents import read
from gradroute.data.text.packing import Corpus, pack
from gradroute.data.text.tokenizing import train_bpe, train_words
from gradroute.data.text.toy_stories import concepts, generate
from gradroute.errors import UserError
from gradroute.models.transformer import Transformer
from gradroute.models.transformer_layers import TransformerConfig
from gradroute.reporting.page import Page

STORIES = generate(400, 0)
WORDS, BPE = train_words(STORIES.texts), train_bpe(STORIES.texts, 700)
CORPUS = Corpus.of(WORDS.encode(STORIES.texts), WORDS.end)
FOREST = torch.tensor([yes == "yes" for yes in STORIES.columns["forest"]])
MARKERS = concepts()["forest"].markers
SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "tinystories_sample.txt.xz"
corpora = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=8), min_size=1, max_size=6)


def test_words_patterns_and_metadata_find_the_same_stories() -> None:
    assert torch.equal(rules.by_words(STORIES.texts, MARKERS), FOREST)
    assert torch.equal(rules.by_pattern(STORIES.texts, rf"\b({'|'.join(MARKERS)})\b"), FOREST)
    assert torch.equal(rules.by_metadata(STORIES.columns, "forest", ["yes"]), FOREST)
    sequences = [sequence for word in MARKERS for sequence in rules.variants(WORDS, word)]
    assert torch.equal(rules.with_phrase(CORPUS, sequences), FOREST)
    assert 50 < int(FOREST.sum()) < 120


def test_words_are_whole_and_of_any_case() -> None:
    texts = ["A treehouse.", "TREE!", "my oak tree", "the oaks", "an oak\ntree"]
    assert rules.by_words(texts, ["tree"]).tolist() == [False, True, True, False, True]
    assert rules.by_words(texts, ["oak tree", "a treehouse"]).tolist() == [True, False, True, False, False]


def test_labels_go_missing_and_wrong_as_for_every_other_data() -> None:
    """A document rule's answer is a label, and the core's groups take it as it is."""
    part = Part(torch.zeros(len(FOREST), 0), FOREST.long(), STORIES.columns)
    routing = RoutingConfig(groups={"forget": GroupConfig([1])}, unassigned="unrouted", labelled_fraction=0.25)
    labelled = assign(routing, part, part, seed=0).routed == 0
    assert 0 < int(labelled.sum()) < 0.5 * int(FOREST.sum()) and not bool((labelled & ~FOREST).any())
    noisy = replace(routing, labelled_fraction=1.0, label_noise={"forget": NoiseConfig(0.1, 0.0)})
    assert bool((assign(noisy, part, part, seed=0).routed == 0)[~FOREST].any())


def test_a_phrase_has_its_case_and_space_variants() -> None:
    spelled = {BPE.decode(sequence) for sequence in rules.variants(BPE, "big hug")}
    assert spelled == {first + text for text in ("big hug", "Big hug", "BIG HUG") for first in ("", " ")}
    assert [BPE.decode(s) for s in rules.variants(BPE, " oak", case=False, space=False)] == [" oak"]
    assert [BPE.decode(s) for s in rules.variants(BPE, "Oak", case=True, space=False)] == ["Oak", "oak", "OAK"]
    (known,) = rules.variants(WORDS, "oak")  # the other spellings do not occur
    assert WORDS.decode(known) == " oak"


@settings(max_examples=150, deadline=None)
@given(documents=corpora, sequences=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=4), max_size=3))
def test_occurrences_equal_the_slow_reference(documents: list[list[int]], sequences: list[list[int]]) -> None:
    expected = []
    for document in documents:
        marked = [False] * len(document)
        for sequence in sequences:
            for at in range(len(document)):
                if document[at : at + len(sequence)] == sequence:
                    marked[at : at + len(sequence)] = [True] * len(sequence)
        expected += marked
    assert rules.occurrences(Corpus.of(documents), sequences).tolist() == expected


# ---- frequency-ratio weights --------------------------------------------------------------------------------------


def test_published_weights_follow_from_plausible_ratios() -> None:
    """GR table 3: a token's weight falls from 1 where it avoids forget stories to 0 where it hardly occurs outside."""
    ratios = torch.tensor([100.0, 3.913, 2.636, 2.129, 1.0, 0.623, 0.2], dtype=torch.float64)
    published = [0.000, 0.585, 0.851, 0.912, 0.982, 0.993, 1.000]  # tree, bird, animals, find, (neutral), mom, room
    assert [round(float(weight), 3) for weight in rules.weight_of_ratio(ratios)] == published
    by_hand = 1 - 1 / (1 + torch.exp(-(1.0 * (ratios - 1 / ratios) - 4.0)))
    torch.testing.assert_close(rules.weight_of_ratio(ratios), by_hand)


@settings(max_examples=50, deadline=None)
@given(documents=st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=30), min_size=2, max_size=6))
def test_weights_equal_counting_by_hand(documents: list[list[int]]) -> None:
    forget = [True, *[False] * (len(documents) - 1)]
    counts = {yes: Counter(t for d, f in zip(documents, forget, strict=True) if f == yes for t in d) for yes in (0, 1)}
    inside, outside = ({t: counts[yes][t] + more for t in range(5)} for yes, more in ((1, 1), (0, 20)))
    weights = rules.ratio_weights(Corpus.of(documents), torch.tensor(forget), 5)
    for token in range(5):
        ratio = (inside[token] / sum(inside.values())) / (outside[token] / sum(outside.values()))
        assert float(weights[token]) == pytest.approx(float(rules.weight_of_ratio(torch.tensor(ratio))), abs=1e-6)


def test_only_labelled_stories_count_as_forget() -> None:
    labelled = FOREST & (torch.arange(len(FOREST)) % 4 == 0)
    full, part = (rules.ratio_weights(CORPUS, chosen, WORDS.size) for chosen in (FOREST, labelled))
    ((tree,),) = rules.variants(WORDS, "tree")
    inside = labelled[CORPUS.documents]
    counts = [torch.bincount(CORPUS.tokens[chosen], minlength=WORDS.size) for chosen in (inside, ~inside)]
    assert int(counts[1][tree]) > 0  # the trees of stories that lost their label count with the others
    ratio = (counts[0][tree] + 1) / (len(CORPUS.tokens[inside]) + WORDS.size)
    ratio /= (counts[1][tree] + 20) / (len(CORPUS.tokens[~inside]) + 20 * WORDS.size)
    assert float(part[tree]) == pytest.approx(float(rules.weight_of_ratio(ratio)), abs=1e-6)
    assert float(full[tree]) < float(part[tree])


def test_stories_outside_have_no_share_and_inside_it_is_the_weights() -> None:
    weights = rules.ratio_weights(CORPUS, FOREST, WORDS.size)
    shares = rules.by_weight(CORPUS, weights, FOREST)
    inside = FOREST[CORPUS.documents]
    assert not bool(shares[~inside].any())
    torch.testing.assert_close(shares[inside], 1 - weights[CORPUS.tokens[inside]].float())
    assert torch.equal(rules.everywhere(CORPUS, FOREST), inside.float())


@pytest.mark.skipif(not SAMPLE.exists(), reason="needs the sample of real stories, which is not in the repository")
def test_real_stories_give_weights_in_the_published_order() -> None:
    documents = read(SAMPLE)
    tokenizer = train_bpe(documents.texts, 4096)
    corpus = Corpus.of(tokenizer.encode(documents.texts), tokenizer.end)
    words = ["tree", "trees", "forest", "forests", "woodland", "woodlands"]
    forget = rules.by_words(documents.texts, words)
    assert int(forget.sum()) == 1138
    weights, found = rules.ratio_weights(corpus, forget, tokenizer.size), []
    for word in ("tree", "bird", "animals", "find", "mom", "room"):
        ((token,),) = rules.variants(tokenizer, f" {word}", case=False, space=False)
        found.append(float(weights[token]))
    assert found == sorted(found) and found[0] < 0.0005 and found[1] < 0.8 and found[-2] > 0.98


# ---- where the mask sits -------------------------------------------------------------------------------------------


def test_the_share_of_a_token_is_at_the_position_that_predicts_it() -> None:
    """Off by one would route the wrong token: for `… saw the oak` the mask is on `the`."""
    texts = ["Lily saw the oak and the birch.", "Tom saw the ferry."]
    corpus = Corpus.of(WORDS.encode(texts), WORDS.end)
    packed = pack(corpus, 16)
    shares = rules.occurrences(corpus, rules.variants(WORDS, "oak")).float()
    mask = rules.memberships(corpus, packed, {"word": shares})
    assert mask.shape == (1, 16, 1)
    assert [WORDS.spellings[t] for t in packed.tokens[mask[..., 0] == 1]] == [" the"]
    assert [WORDS.spellings[t] for t in packed.targets[mask[..., 0] == 1]] == [" oak"]
    whole = rules.memberships(corpus, packed, {"story": rules.everywhere(corpus, torch.tensor([True, False]))})
    assert whole[0, :, 0].tolist() == [1] * 8 + [0] * 8  # eight predictions; the end token predicts nothing
    first = rules.occurrences(corpus, rules.variants(WORDS, "Tom"))
    assert int(first.sum()) == 1 and not bool(rules.memberships(corpus, packed, {"name": first.float()}).any())


def test_packed_shares_reach_the_stream_as_the_released_weights() -> None:
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(WORDS.size, layers=2, width=16, heads=2, context=256)).double()
    weights = rules.ratio_weights(CORPUS, FOREST, WORDS.size)
    packed = pack(CORPUS, 200)
    mask = rules.memberships(CORPUS, packed, {"forget": rules.by_weight(CORPUS, weights, FOREST)})
    rows = torch.arange(3)
    tokens, targets, ids = packed.tokens[rows], packed.targets[rows], packed.documents[rows]
    region = {"old": Region("blocks.0.mlp.act", "0:60")}
    router = Router(model, region, ["forget"], {"forget": {"old": -0.75}}, (tokens, ids))
    gradients = []
    for share in (mask[rows], torch.zeros_like(mask[rows])):
        with router.route(share) as seen:
            loss = F.cross_entropy(model(tokens, ids).flatten(0, 1), targets.flatten())
        gradients.append(torch.autograd.grad(loss, seen["blocks.0.mlp.act"])[0])
    expected = torch.ones(targets.shape, dtype=torch.float64)
    for row, at in (targets >= 0).nonzero().tolist():
        if FOREST[ids[row, at]]:
            w = float(weights[targets[row, at]])
            expected[row, at] = w + (1 - w) * -0.75
    assert float(expected.min()) < 0 and float(expected.max()) == 1
    torch.testing.assert_close(gradients[0][..., :60], gradients[1][..., :60] * expected[..., None], rtol=1e-5, atol=0)
    assert torch.equal(gradients[0][..., 60:], gradients[1][..., 60:])


def test_two_groups_mix_in_their_order() -> None:
    corpus = Corpus.of([[5, 6, 7]])
    shares = {"a": torch.tensor([1.0, 0.25, 0.5]), "b": torch.tensor([0.0, 0.75, 0.25])}
    mask = rules.memberships(corpus, pack(corpus, 4), shares)
    assert mask.tolist() == [[[0.25, 0.75], [0.5, 0.25], [0, 0], [0, 0]]]


# ---- mistakes ------------------------------------------------------------------------------------------------------

SMALL = Corpus.of([[1, 2], [3]])
YES = torch.tensor([True, True])
MISTAKES: list[tuple[Any, str]] = [
    (lambda: rules.by_words(STORIES.texts, []), "word list []: give at least one word"),
    (lambda: rules.by_words(STORIES.texts, ["tree", " "]), "and no empty one"),
    (lambda: rules.by_words(STORIES.texts, ["tractors"]), "word list ['tractors']: is in none of the 400 documents"),
    (lambda: rules.by_words(["a b", "b"], ["b"]), "word list ['b']: is in all of the 2 documents"),
    (lambda: rules.by_pattern(["a"], "(tree"), "pattern '(tree' is not a regular expression: missing ), unterminated"),
    (lambda: rules.by_pattern(["a"], "x"), "pattern 'x': is in none of the 1 documents"),
    (lambda: rules.by_metadata(STORIES.columns, "forst", ["yes"]), "unknown column of the documents: 'forst'; did you"),
    (lambda: rules.by_metadata(STORIES.columns, "forest", ["yess"]), "unknown value of column 'forest': 'yess'; did"),
    (lambda: rules.by_metadata(STORIES.columns, "forest", ["yes", "no"]), "is in all of the 400 documents"),
    (lambda: rules.with_phrase(SMALL, [[9]]), "token sequences [[9]]: is in none of the 2 documents"),
    (lambda: rules.variants(BPE, " "), "phrase ' ' tokenizes to nothing"),
    (lambda: rules.variants(WORDS, "zyxw"), "phrase 'zyxw' has a word outside the vocabulary"),
    (lambda: rules.ratio_weights(SMALL, ~YES, 5), "the forget label: is in none of the 2 documents"),
    (lambda: rules.memberships(SMALL, pack(SMALL, 4), {"a": torch.ones(2)}), "not one for each of the 3 tokens"),
    (
        lambda: rules.memberships(SMALL, pack(SMALL, 4), {"a": torch.tensor([0, 1.5, 1])}),
        "at 1 tokens are not a convex",
    ),
    (
        lambda: rules.memberships(SMALL, pack(SMALL, 4), {"a": torch.ones(3), "b": torch.tensor([0, 1, 1])}),
        "shares of ['a', 'b'] at 2 tokens are not a convex mixture",
    ),
    (lambda: ranked(SMALL, torch.zeros(3), BPE, YES), "no token occurs 10 times in 2 documents"),
    (lambda: coloured(SMALL, torch.zeros(3), BPE, 2), "document 2 does not exist; use 0 to 1"),
]


@pytest.mark.parametrize(("call", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_refused(call: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        call()
    assert message in str(error.value) and "\n" not in str(error.value)


# ---- for people ----------------------------------------------------------------------------------------------------


def test_the_most_and_least_routed_tokens() -> None:
    weights = rules.ratio_weights(CORPUS, FOREST, WORDS.size)
    most, fewest = ranked(CORPUS, rules.by_weight(CORPUS, weights, FOREST), WORDS, FOREST, rows=15)
    words = {first + word for word in concepts()["forest"].words for first in ("", " ")}
    assert {row.token for row in most} <= words and len(most) == len(fewest) == 15
    assert not {row.token for row in fewest} & words
    assert [row.weight for row in most] == sorted(row.weight for row in most) and most[0].weight < 0.01
    assert fewest[0].weight > 0.98 and all(row.count >= 10 for row in [*most, *fewest])
    tree = next(row for row in most if row.token in (" trees", " forest"))
    (token,) = rules.variants(WORDS, tree.token, case=False, space=False)[0]
    assert tree.weight == pytest.approx(float(weights[token]), abs=1e-6)
    assert tree.count == int((CORPUS.tokens[FOREST[CORPUS.documents]] == token).sum())


def test_documents_are_coloured_escaped_and_need_no_network() -> None:
    evil = "<script>alert('x')</script> & <b>oak</b>"
    tokenizer = train_bpe([evil] * 3, 300)
    corpus = Corpus.of(tokenizer.encode(["plain", evil]), tokenizer.end)
    shares = rules.occurrences(corpus, rules.variants(tokenizer, "oak")).float() * 0.415
    tokens = coloured(corpus, shares, tokenizer, 1)
    assert "".join(token for token, _ in tokens) == evil + "<|endoftext|>"
    html = Page("title", [], [], documents=[(evil, tokens)]).html()
    assert "<script>alert" not in html and "<b>" not in html
    assert not re.search(r"(src|href)=.(?!data:)|url\(", html)
    marked = re.findall(r'<mark style="--share: ([\d.]+)" title="weight ([\d.]+)">', html)
    assert set(marked) == {("0.415", "0.585")} and len(marked) == int((shares > 0).sum())
    text = re.sub(r"<[^>]+>", "", html.split('class="document"')[1])
    assert "&lt;b&gt;oak&lt;/b&gt;" in text
    (*_, last) = coloured(Corpus.of([[1] * 500]), torch.zeros(500), tokenizer, 0)
    assert last == (" …", 0.0)
