"""The transformer against slow references; its sites, its growth, its routing; completions."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradroute import Layer, Region, Router, UserError, contract, expand, removed
from gradroute.config.compose import configuration
from gradroute.data.text.packing import Corpus, pack, separated
from gradroute.data.text.tokenizing import train_words
from gradroute.data.text.toy_stories import generate
from gradroute.models.base import plan_of
from gradroute.models.beside import add_beside
from gradroute.models.generation import complete, steered
from gradroute.models.transformer import Transformer
from gradroute.models.transformer_layers import TransformerConfig, attend, rotate
from gradroute.routing import Site
from gradroute.routing.ablation import contract_features

GPT = TransformerConfig(vocabulary=11, layers=3, width=16, heads=4, context=12)
LLAMA = replace(GPT, mlp="swiglu", positions="rotary", norm="rmsnorm", tied=False, bias=False)
KINDS = pytest.mark.parametrize("config", [GPT, LLAMA], ids=["gpt", "llama"])


def model_of(config: TransformerConfig, seed: int = 0) -> Any:
    """A model in float64 with weights large enough that its parts matter."""
    torch.manual_seed(seed)
    model = Transformer(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.4)
    return model


def tokens_of(rows: int, length: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(seed))


def slow_attention(attention: Any, x: torch.Tensor) -> torch.Tensor:
    """One head and one position at a time, `x` is `(length, width)`; no rotation."""
    rows = []
    for at in range(len(x)):
        heads = []
        for head in range(attention.num_heads):
            units = slice(head * attention.head_width, (head + 1) * attention.head_width)
            query, seen = attention.query(x[at])[units], x[: at + 1]
            scores = attention.key(seen)[:, units] @ query / attention.head_width**0.5
            heads.append(scores.exp() / scores.exp().sum() @ attention.value(seen)[:, units])
        rows.append(attention.out(torch.cat(heads)))
    return torch.stack(rows)


def test_attention_equals_one_head_and_position_at_a_time() -> None:
    attention, x = model_of(GPT).blocks[0].attn, torch.randn(2, 7, 16, dtype=torch.float64)
    expected = torch.stack([slow_attention(attention, row) for row in x])
    torch.testing.assert_close(attention(x, None, None), expected)


@pytest.mark.parametrize("masked", [False, True])
def test_attention_under_autocast_is_that_of_float32(masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(2, 2, 9, 4, dtype=torch.float64) for _ in range(3))
    mask = torch.rand(2, 1, 9, 9).tril() > 0.2 if masked else None
    if mask is not None:
        mask |= torch.eye(9, dtype=torch.bool)
    exact = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
    torch.testing.assert_close(attend(query, key, value, mask), exact, rtol=0, atol=0)  # float64 stays
    query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attend(query, key, value, mask)
    exact = F.scaled_dot_product_attention(
        query.float(), key.float(), value.float(), attn_mask=mask, is_causal=mask is None
    )
    torch.testing.assert_close(found, exact, rtol=0, atol=0)


def test_rotation_is_a_product_of_complex_numbers() -> None:
    model, positions = model_of(LLAMA), torch.tensor([[0, 1, 2, 7, 0]])
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    slow = torch.empty_like(x)
    for at, position in enumerate(positions[0].tolist()):
        for pair in range(2):
            turn = torch.polar(torch.tensor(1.0), torch.tensor(position * 10000.0 ** (-pair / 2)))
            turned = torch.complex(x[:, :, at, pair], x[:, :, at, pair + 2]) * turn
            slow[:, :, at, pair], slow[:, :, at, pair + 2] = turned.real, turned.imag
    torch.testing.assert_close(rotate(x, model._rotation(positions)), slow, rtol=1e-6, atol=1e-6)


def test_rotated_scores_depend_on_the_distance_only() -> None:
    model, x = model_of(LLAMA), torch.randn(2, 1, 1, 4, dtype=torch.float64)
    query, key = x
    scores = []
    for first in (0, 5):
        turned = [rotate(v[None], model._rotation(torch.tensor([[first + d]]))) for v, d in ((query, 3), (key, 0))]
        scores.append((turned[0] * turned[1]).sum())
    torch.testing.assert_close(scores[0], scores[1], rtol=1e-5, atol=1e-5)


@KINDS
def test_a_position_sees_nothing_after_it(config: TransformerConfig) -> None:
    model, tokens = model_of(config), tokens_of(1, 12)
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 11
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :7], after[:, :7], rtol=1e-12, atol=1e-12)
    assert bool((before[:, 7:] != after[:, 7:]).any(-1).all())


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=4).filter(lambda v: sum(v) <= 12), rotary=st.booleans())
def test_packed_documents_equal_one_document_at_a_time(lengths: list[int], rotary: bool) -> None:
    model, tokens = model_of(LLAMA if rotary else GPT), tokens_of(1, sum(lengths))
    # numbers may come back: only neighbours need to differ
    ids = torch.cat([torch.full((n,), i % 2 - 1) for i, n in enumerate(lengths)])[None]
    alone = torch.cat([model(part) for part in tokens.split(lengths, 1)], 1)
    torch.testing.assert_close(model(tokens, ids), alone)


def test_positions_and_masks_of_packed_documents() -> None:
    positions, mask = separated(torch.tensor([[4, 4, 4, 9, 9, 4]]))
    assert positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    sees = [[1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0], [0, 0, 0, 1, 1, 0]]
    assert mask[0, 0].int().tolist() == [*sees, [0, 0, 0, 0, 0, 1]]


def sizes_of(option: str) -> dict[str, Any]:
    """The component that `model=transformer_<option>` is, with the sizes that it has."""
    return configuration(["experiment=stories_era/base", f"model=transformer_{option}"]).model


@pytest.mark.parametrize(
    ("option", "vocabulary", "length", "millions"),
    [("1m", 2048, 128, 1.07), ("3m", 2048, 256, 3.11), ("8m", 4096, 256, 7.43), ("28m", 4096, 256, 27.45),
     ("303m", 50257, 1024, 303.2)],
)  # fmt: skip
def test_models_have_the_size_in_their_name(option: str, vocabulary: int, length: int, millions: float) -> None:
    plan = plan_of({**sizes_of(option), "expand": [], "added": 0})
    model = plan.outline(vocabulary=vocabulary, context=length)
    assert sum(p.numel() for p in model.parameters()) == pytest.approx(millions * 1e6, rel=0.005)


def test_the_published_shapes() -> None:
    def shape(option: str, *keys: str) -> list[Any]:
        sizes = sizes_of(option)
        return [sizes[key] for key in keys]

    assert shape("28m", "layers", "width", "heads", "mlp", "hidden") == [8, 512, 16, "gelu", 2048]
    assert shape("28m", "expand", "added") == [[0, 1, 2, 3, 4], 64]
    assert shape("303m", "layers", "width", "heads", "norm", "positions") == [20, 1024, 16, "rmsnorm", "rotary"]


def test_weights_of_one_seed_are_the_same_and_tied_ones_are_saved_once() -> None:
    torch.manual_seed(3)
    first = Transformer(GPT)
    torch.manual_seed(3)
    second = Transformer(GPT)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))
    assert first.unembedding is first.embed.weight and "unembed.weight" not in first.state_dict()
    assert Transformer(LLAMA).unembedding.shape == (11, 16)


@pytest.mark.parametrize("changes", [{}, {"positions": "rotary"}, {"mlp": "swiglu", "norm": "rmsnorm", "tied": False}])
def test_a_sequence_is_learnt_by_heart(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = Transformer(replace(GPT, **changes))
    tokens = tokens_of(2, 12, seed=5)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(150):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.4  # two rows that begin alike can stay ambiguous; the uniform guess has 2.4
    assert complete(model, tokens[:, :4], 6, temperature=0).tolist() == tokens[:, :10].tolist()


@pytest.mark.slow
def test_toy_stories_are_learnt_below_what_word_frequencies_give() -> None:
    texts = generate(300, 0).texts
    tokenizer = train_words(texts)
    packed = pack(Corpus.of(tokenizer.encode(texts), tokenizer.end), 128)
    counted = packed.targets[packed.targets >= 0]
    frequency = torch.bincount(counted, minlength=tokenizer.size).double() / len(counted)
    entropy = float(-torch.xlogy(frequency, frequency).sum())
    torch.manual_seed(0)
    sizes = replace(GPT, vocabulary=tokenizer.size, layers=2, width=64, context=128)
    model, generator = Transformer(sizes), torch.Generator().manual_seed(0)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(120):
        rows = torch.randint(len(packed), (8,), generator=generator)
        logits = model(packed.tokens[rows], packed.documents[rows])
        loss = F.cross_entropy(logits.flatten(0, 1), packed.targets[rows].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert entropy > 4.5 and loss.item() < 0.6 * entropy


MISTAKES: list[tuple[dict[str, Any], str]] = [
    ({"width": 0}, "transformer: width=0: must be 1 or more"),
    ({"hidden": -1}, "units=-1: must be 1 or more"),
    ({"heads": 3}, "width=16 is not a multiple of heads=3"),
    ({"heads": 16, "positions": "rotary"}, "rotary positions need heads of even width, not 1"),
    ({"mlp": "gellu"}, "unknown mlp of a transformer: 'gellu'; did you mean gelu?"),
    ({"norm": "batch"}, "unknown norm of a transformer: 'batch'"),
]


@pytest.mark.parametrize(("changes", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        replace(GPT, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_what_is_beyond_the_model_is_refused() -> None:
    model = model_of(GPT)
    with pytest.raises(UserError, match="a sequence of 13 tokens is longer than the model's context=12"):
        model(tokens_of(1, 13))
    with pytest.raises(UserError, match="layer 3 is out of range; layers go from 0 to 2"):
        model.mlp_layers(3)


# ---- growth -------------------------------------------------------------------------------------------------------


@KINDS
def test_added_mlp_units_go_away_again(config: TransformerConfig) -> None:
    model, tokens = model_of(config), tokens_of(2, 9)
    before, layer = model(tokens), Layer(*model.mlp_layers(1))
    new = expand(model, layer, 5, "silent")
    torch.testing.assert_close(model(tokens), before, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        model.blocks[1].mlp.down.weight[:, -5:].normal_()
    assert not torch.allclose(model(tokens), before)
    contract(model, layer, new)
    assert torch.equal(model(tokens), before)


@KINDS
@pytest.mark.parametrize("inner", ["blocks.1.mlp", "blocks.2.mlp.beside.extra"])
def test_the_layers_around_units_that_the_model_names_are_those_that_are_found(
    config: TransformerConfig, inner: str
) -> None:
    model, tokens = model_of(config), tokens_of(1, 6)
    add_beside(model, config, {"extra": 8})
    model.double()
    for module in (model.blocks[2].mlp.beside["extra"].down, model.blocks[1].mlp.down):
        nn.init.normal_(module.weight)
    site, gone = f"{inner}.act", [0, 1, 7]
    found: Any = removed(model, site, gone, tokens)
    layer = model.layer_at(site)
    assert layer is not None
    named: Any = copy.deepcopy(model)
    contract_features(named, layer, gone, "units")
    assert found.get_submodule(inner).up.out_features == model.get_submodule(inner).up.out_features - 3
    sizes = {name: tensor.shape for name, tensor in found.state_dict().items()}
    assert sizes == {name: tensor.shape for name, tensor in named.state_dict().items()}
    assert torch.equal(named(tokens), found(tokens)) and model.layer_at("blocks.1") is None


@KINDS
def test_added_heads_go_away_again(config: TransformerConfig) -> None:
    model, tokens = model_of(config), tokens_of(2, 9)
    before, attention = model(tokens), "blocks.0.attn"
    producers = tuple(f"{attention}.{name}" for name in ("query", "key", "value"))
    heads = Layer(producers, (f"{attention}.out",), width=4, count=(f"{attention}.num_heads",))
    new = expand(model, heads, 2, "silent")
    assert new == (4, 5) and model.blocks[0].attn.num_heads == 6
    torch.testing.assert_close(model(tokens), before)
    contract(model, heads, new)
    assert torch.equal(model(tokens), before)


# ---- routing: the model knows nothing of it ------------------------------------------------------------------------


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    found = torch.autograd.grad(loss, list(model.parameters()))
    return dict(zip([name for name, _ in model.named_parameters()], found, strict=True))


@KINDS
def test_routed_tokens_reach_the_chosen_neurons_only(config: TransformerConfig) -> None:
    model, tokens = model_of(config), tokens_of(2, 9)
    units = config.units
    region = Region("blocks.*.mlp.act", f"4:{units}")
    router = Router(model, {"old": region}, ["forget"], {"forget": {"old": 0.0}}, tokens)
    plain = model(tokens)
    with router.route("forget"):
        routed = model(tokens)
    assert torch.equal(plain, routed)
    found = gradients(model, routed.square().sum())
    for layer in range(3):
        for name in model.mlp_layers(layer)[0]:
            weight = found[f"{name}.weight"]
            assert bool((weight[4:] == 0).all()) and bool((weight[:4] != 0).any(1).all())
    free = gradients(model, plain.square().sum())
    assert all(bool((free[f"blocks.{n}.mlp.up.weight"] != 0).any(1).all()) for n in range(3))


@KINDS
def test_routed_positions_reach_dimension_0_of_the_stream_only(config: TransformerConfig) -> None:
    model, tokens = model_of(config), tokens_of(2, 9)
    rest = Region(["blocks.0", "blocks.1"], "1:16")
    router = Router(model, {"rest": rest}, ["word"], {"word": {"rest": 0.0}}, tokens)
    member = tokens_of(2, 9, seed=1) < 4
    plain, share = model(tokens), member[..., None].to(torch.float32)
    with router.route(share) as seen:
        for activation in (routed := model(tokens), *seen.values()):
            activation.retain_grad()
    assert torch.equal(plain, routed) and member.any() and not member.all()
    routed.square().sum().backward()
    for name in ("blocks.0", "blocks.1"):  # what arrives before the mask is what the mask let through
        arrived = seen[name].grad
        assert arrived is not None
        assert bool((arrived[member][:, 1:] == 0).all()) and bool((arrived[member][:, 0] != 0).all())
        assert bool((arrived[~member] != 0).all())
    with router.route("word"):
        found = gradients(model, model(tokens).square().sum())
    for name in ("blocks.0.mlp.down.weight", "blocks.1.mlp.down.weight"):
        assert bool((found[name][1:] == 0).all()) and bool((found[name][0] != 0).any())
    # attention's output is also read inside the layer, by the MLP, before the mask
    assert bool((found["blocks.1.attn.out.weight"][1:] != 0).any())
    assert bool((found["blocks.2.mlp.down.weight"] != 0).any(1).all())


def test_token_weights_equal_the_textbook_form() -> None:
    """One position's gradient at a time: the loss of the masked stream is linear in what arrives."""
    model, tokens = model_of(GPT), tokens_of(1, 6)
    share = torch.rand(1, 6, 1, generator=torch.Generator().manual_seed(0))
    router = Router(model, {"old": Region("blocks.1.mlp.act", "8:64")}, ["f"], {"f": {"old": -0.75}}, tokens)
    with router.route(share):
        ours = gradients(model, model(tokens).square().sum())

    def textbook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        weight = torch.ones_like(output)
        for at in range(6):
            w = 1 - float(share[0, at, 0])
            weight[0, at, 8:] = w + (1 - w) * -0.75
        return weight * output + (1 - weight) * output.detach()

    handle = model.blocks[1].mlp.act.register_forward_hook(textbook)
    theirs = gradients(model, model(tokens).square().sum())
    handle.remove()
    for name, gradient in theirs.items():
        torch.testing.assert_close(ours[name], gradient, rtol=1e-5, atol=1e-5)


def test_heads_are_units_of_their_site() -> None:
    model, tokens = model_of(GPT), tokens_of(1, 6)
    head = Region("blocks.1.attn.heads", {"heads": [2]})
    router = Router(model, {"head": head}, ["g"], {"g": {"head": 0.0}}, tokens)
    assert router.regions["head"].units == (8, 9, 10, 11)
    assert router.found["blocks.1.attn.heads"].producer == "blocks.1.attn.value"


# ---- completions ---------------------------------------------------------------------------------------------------


@KINDS
def test_completions_equal_drawing_by_hand(config: TransformerConfig) -> None:
    model, prompt = model_of(config), tokens_of(1, 3)
    got = complete(model, prompt, 5, torch.Generator().manual_seed(1), temperature=0.7)
    generator, expected = torch.Generator().manual_seed(1), prompt[0].tolist()
    for _ in range(5):
        odds = (model(torch.tensor([expected]))[0, -1].float() / 0.7).exp()
        expected.append(int(torch.multinomial(odds / odds.sum(), 1, generator=generator)))
    assert got.tolist() == [expected]
    greedy = complete(model, prompt, 5, temperature=0)
    for at in range(3, 8):
        assert greedy[0, at] == model(greedy[:, :at])[0, -1].argmax()
    assert torch.equal(complete(model, prompt.repeat(2, 1), 5, temperature=0), greedy.repeat(2, 1))


def test_completions_leave_modes_and_generators_alone_and_slide_over_the_context() -> None:
    model, prompt = model_of(GPT), tokens_of(1, 3)
    model.blocks[1].eval()
    modes, state = [m.training for m in model.modules()], torch.get_rng_state()
    long = complete(model, prompt, 20, temperature=0, context=12)
    assert long.shape == (1, 23) and modes == [m.training for m in model.modules()]
    assert torch.equal(state, torch.get_rng_state()) and not long.requires_grad
    assert long[0, 22] == model(long[:, 10:22])[0, -1].argmax()
    with pytest.raises(UserError, match="longer than the model's context"):
        complete(model, prompt, 20, temperature=0)


def test_steering_adds_to_one_unit_of_the_stream() -> None:
    model, prompt = model_of(GPT), tokens_of(1, 3)
    got = complete(model, prompt, 6, temperature=0, steer=steered(model, Site("blocks.1"), 3, -30.0))
    text = prompt
    for _ in range(6):
        x = model.embed(text) + model.position(torch.arange(text.shape[1]))
        x = model.blocks[1](model.blocks[0](x, None, None), None, None)
        x[..., 3] -= 30.0
        logits = model.norm(model.blocks[2](x, None, None)) @ model.unembedding.T
        text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(got, text) and not torch.equal(got, complete(model, prompt, 6, temperature=0))
    assert not any(m._forward_hooks for m in model.modules())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": torch.zeros(1, 0, dtype=torch.long)}, "a prompt of shape (1, 0)"),
        ({"temperature": -1.0}, "temperature=-1.0, tokens=2, context=None: must be 0 or more"),
        ({"temperature": 1.0}, "give a generator, or temperature=0"),
        ({"steer": "nowhere"}, "unknown site 'blocks.9'"),
        ({"steer": "outside"}, "site 'blocks.1': unit 16 is out of range; units go from 0 to 15"),
    ],
)
def test_mistakes_of_completions_are_refused(options: dict[str, Any], message: str) -> None:
    model = model_of(GPT)
    if options.get("steer"):
        site, unit = {"nowhere": ("blocks.9", 0), "outside": ("blocks.1", 16)}[options["steer"]]
        options["steer"] = steered(model, Site(site), unit, 1.0)
    with pytest.raises(UserError) as error:
        complete(model, **{"prompt": tokens_of(1, 3), "tokens": 2, "temperature": 0.0, **options})
    assert message in str(error.value)
