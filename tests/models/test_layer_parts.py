"""Regions that say what they are: parts of the layers of many kinds of language model, against the definition."""

import copy
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn

from gradroute import Region, Router
from gradroute.config.schema import RegionConfig, RoutingConfig
from gradroute.errors import UserError
from gradroute.models.layer_parts import parameters_of, region_of
from gradroute.models.transformer import build_transformer
from gradroute.routing.ablation import remove, zero
from gradroute.routing.hooks import hooked
from gradroute.tasks.parts import routers

SMALL: dict[str, Any] = {
    "vocab_size": 23, "max_position_embeddings": 16, "hidden_size": 16, "num_hidden_layers": 3,
    "num_attention_heads": 4, "intermediate_size": 24, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GROUPED = {"num_key_value_heads": 2, "head_dim": 4}
CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", SMALL | GROUPED),
    "mistral": ("MistralConfig", SMALL | GROUPED | {"sliding_window": None}),
    "qwen2": ("Qwen2Config", SMALL | {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3Config", SMALL | GROUPED),
    "gemma2": ("Gemma2Config", SMALL | GROUPED | {"query_pre_attn_scalar": 4, "sliding_window": 16}),
    "gemma3": ("Gemma3TextConfig", SMALL | GROUPED | {"query_pre_attn_scalar": 4, "sliding_window": 16}),
    "phi": ("PhiConfig", SMALL),
    "phi3": ("Phi3Config", SMALL),
    "gpt_neox": ("GPTNeoXConfig", SMALL),
    "gpt2": ("GPT2Config", {"vocab_size": 23, "n_positions": 16, "n_embd": 16, "n_layer": 3, "n_head": 4}),
    "opt": ("OPTConfig", {k: v for k, v in SMALL.items() if k != "intermediate_size"}
            | {"ffn_dim": 24, "word_embed_proj_dim": 16}),
}  # fmt: skip
UNKNOWN = {"mixtral": ("MixtralConfig", SMALL | {"num_key_value_heads": 2, "num_local_experts": 2})}
UNITS = {"gpt2": 64}  # of an MLP, where they are not 24
PARTS = {"mlp": list(range(3, 24)), "heads": [1, 3], "residual": [0, 5]}
needs_transformers = pytest.mark.skipif(not find_spec("transformers"), reason="needs gradroute[hf]")


def made(kind: str) -> Any:
    """A model with random weights in float64: of `transformers`, or our own transformer."""
    torch.manual_seed(0)
    if kind == "own":
        return build_transformer(23, 16, 3, 16, 4, 24, mlp="swiglu").double().eval()
    if not find_spec("transformers"):
        pytest.skip("needs gradroute[hf]")
    import transformers

    from gradroute.models.loading import load

    name, settings = (CONFIGS | OTHERS | UNKNOWN)[kind]
    return load(getattr(transformers, name)(**settings, attn_implementation="eager")).double().eval()


def parameter_gradients(model: nn.Module, loss: torch.Tensor) -> list[torch.Tensor]:
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def losses(model: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of each row, `(rows,)`."""
    logits = model(tokens)[:, :-1]
    return nn.functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none").mean(1)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("kind", ["own", *CONFIGS])
def test_gradients_are_those_of_the_definition_one_point_at_a_time(kind: str, part: str) -> None:
    model, tokens = made(kind), torch.randint(3, 23, (4, 7), generator=torch.Generator().manual_seed(1))
    layers, units = [0, 2], PARTS[part]
    region = region_of(model, "r", part, layers, units)
    router = Router(model, {"r": region}, ["f"], {"f": {"r": -0.5}}, tokens[:1])
    with router.route(torch.tensor([0, -1, 0, -1])):
        routed = parameter_gradients(model, losses(model, tokens).sum())

    width = 16 if part != "mlp" else UNITS.get(kind, 24)
    chosen = [4 * head + i for head in units for i in range(4)] if part == "heads" else units
    weight = torch.ones(width, dtype=torch.float64)
    weight[chosen] = -0.5

    def masked(x: torch.Tensor) -> torch.Tensor:
        return x * weight + (x * (1 - weight)).detach()

    def after(module: nn.Module, inputs: Any, output: Any) -> Any:
        return (masked(output[0]), *output[1:]) if isinstance(output, tuple) else masked(output)

    expected = [torch.zeros_like(g) for g in routed]
    hooks = {model.place(part, layer).module: after for layer in layers}
    for number, row in enumerate(tokens.split(1)):
        with hooked(model, hooks if number in (0, 2) else {}):
            found = parameter_gradients(model, losses(model, row).sum())
        expected = [a + b for a, b in zip(expected, found, strict=True)]
    rtol, atol = (1e-4, 1e-7) if "gemma" in kind else (1e-7, 1e-12)  # Gemma's norms compute in float32
    for mine, theirs in zip(routed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=rtol, atol=atol)
    plain = parameter_gradients(model, losses(model, tokens).sum())
    assert any(not torch.allclose(a, b) for a, b in zip(plain, expected, strict=True))


@pytest.mark.parametrize("kind", ["own", *CONFIGS])
def test_the_mlp_is_what_its_last_layer_reads(kind: str) -> None:
    """Weight 0 on every MLP unit of a layer leaves the layers that make these units without any gradient."""
    model, tokens = made(kind), torch.randint(3, 23, (2, 7))
    router = Router(model, {"r": region_of(model, "r", "mlp", [1], None)}, ["f"], {"f": {"r": 0.0}}, tokens[:1])
    with router.route("f"):
        losses(model, tokens).sum().backward()
    block = model.place("residual", 1).module
    silent = {n for n, p in model.named_parameters() if n.startswith(f"{block}.") and not bool(p.grad.any())}
    makers = ("gate", "up", "gate_proj", "up_proj", "gate_up_proj", "c_fc", "fc1", "dense_h_to_4h")
    made_by = {n for n, _ in model.named_parameters() if n.startswith(f"{block}.") and n.split(".")[-2] in makers}
    assert made_by and made_by <= silent
    norms = {n for n in silent - made_by if "norm" not in n and "ln" not in n}  # the norm before the MLP is silent, too
    assert not {n for n in norms if not n.endswith("k_proj.bias") and "key.bias" not in n}


@pytest.mark.parametrize("kind", ["own", *CONFIGS])
def test_a_copy_is_routed_by_its_own_sites(kind: str) -> None:
    model, tokens = made(kind), torch.randint(3, 23, (2, 7))
    twin = copy.deepcopy(model)
    router = Router(twin, {"r": region_of(twin, "r", "mlp", None, None)}, ["f"], {"f": {"r": 0.0}}, tokens[:1])
    with router.route("f") as seen:
        twin(tokens)
    assert len(seen) == 3 and model.state_dict().keys() == twin.state_dict().keys()


@needs_transformers
@pytest.mark.parametrize("kind", ["llama", "qwen3", "gemma2", "mistral", "phi", "opt", "gpt_neox"])
def test_added_units_are_regions_of_their_own(kind: str) -> None:
    from gradroute.models.added_units import add_units
    from gradroute.routing.expansion import Layer

    model: Any = made(kind).float()
    for layer in (0, 2):
        add_units(model, Layer(*model.mlp_layers(layer)), 5, 0.02, 0.02)
        model.added[layer] = 5
    regions = {part: region_of(model, part, part, None, None) for part in ("original", "added")}
    found = Router(model, regions, ["f"], {}, torch.zeros(1, 4, dtype=torch.int64)).regions
    assert [found[part].units for part in regions] == [tuple(range(24)), tuple(range(24, 29))]
    assert all(len(region.sites) == 2 for region in found.values())


OWNING = ("own", "llama", "mistral", "qwen2", "qwen3", "gemma2", "phi", "opt")  # with layers that parameters_of reads


@pytest.mark.parametrize("part", ["mlp", "heads"])
@pytest.mark.parametrize("kind", OWNING)
def test_parameters_of_units_are_those_without_a_gradient_once_the_units_are_0(kind: str, part: str) -> None:
    """Key and value heads that other query heads share keep their gradient."""
    model, tokens = made(kind), torch.randint(3, 23, (8, 7), generator=torch.Generator().manual_seed(1))
    region = region_of(model, "r", part, [0, 2], [1, 4, 5] if part == "mlp" else [0, 2, 3])
    router = Router(model, {"r": region}, ["f"], {}, tokens[:1])
    with zero("r", router).applied(model):
        found = parameter_gradients(model, losses(model, tokens).sum())
    owned = parameters_of(model, router.regions["r"], "r")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert owned.keys() <= set(names) and len(owned) >= 6
    for name, gradient in zip(names, found, strict=True):
        axis, units = owned.get(name, (0, ()))
        here = gradient.movedim(axis, 0) if gradient.dim() else gradient[None]
        rest = torch.ones(len(here), dtype=torch.bool)
        rest[list(units)] = False
        assert not bool(here[~rest].any()), name
        if not name.endswith(("key.bias", "k_proj.bias", "embed.weight", "embed_tokens.weight", "wpe.weight")):
            per_row = here[rest].flatten(1).abs().amax(1) if here.dim() > 1 else here[rest].abs()
            assert bool((per_row > 1e-12).all()) or "position" in name, name


def test_regions_outside_of_others_are_the_other_parameters() -> None:
    model = build_transformer(23, 16, 3, 16, 4, 24, expand=[0, 2], added=5, added_heads=2)
    regions = {
        "added": RegionConfig(part="added"), "heads": RegionConfig(part="added_heads"),
        "rest": RegionConfig(parameters={"*": None}, outside=["added", "heads"]),
    }  # fmt: skip
    _, routed = routers(model, RoutingConfig(regions=regions), ["f"], torch.zeros(1, 4, dtype=torch.int64))
    total = sum(int(mask.expand(p.shape).sum()) for p, mask in routed.parts("rest").items())
    plain = build_transformer(23, 16, 3, 16, 4, 24)
    assert total == sum(p.numel() for p in plain.parameters())


def test_whole_heads_are_removed_and_nothing_else_changes() -> None:
    model = build_transformer(23, 16, 3, 16, 4, 24, expand=[0, 2], added_heads=2).double()
    tokens = torch.randint(3, 23, (4, 7), generator=torch.Generator().manual_seed(1))
    router = Router(model, {"h": region_of(model, "r", "added_heads", None, None)}, ["f"], {}, tokens[:1])
    with zero("h", router).applied(model):
        expected = model(tokens)
    with remove("h", router, tokens[:1]).applied(model) as smaller:
        torch.testing.assert_close(smaller(tokens), expected)
        plain = build_transformer(23, 16, 3, 16, 4, 24)
        assert [p.shape for p in smaller.parameters()] == [p.shape for p in plain.parameters()]
    part = Router(model, {"h": region_of(model, "r", "added_heads", None, "16:18")}, ["f"], {}, tokens[:1])
    with pytest.raises(UserError, match="only whole heads of 4 units"), remove("h", part, tokens[:1]).applied(model):
        pass


OTHERS: dict[str, tuple[str, dict[str, Any]]] = {  # of which logits are scaled
    "cohere": ("CohereConfig", SMALL | {"num_key_value_heads": 2}),
    "granite": ("GraniteConfig", SMALL | {"num_key_value_heads": 2, "logits_scaling": 3.0}),
}


@pytest.mark.parametrize("kind", ["own", *CONFIGS, *OTHERS])
def test_logits_are_those_of_the_features_position_by_position(kind: str) -> None:
    model, tokens = made(kind), torch.randint(3, 23, (2, 7))
    documents = torch.tensor([[0, 0, 0, 1, 1, 1, 1], [2] * 7])
    features = model.features(tokens, documents)
    pieces = [model.logits(features[:, i : i + 1]) for i in range(7)]
    torch.testing.assert_close(torch.cat(pieces, 1), model(tokens, documents), rtol=1e-6, atol=1e-9)
    assert kind == "own" or model.divided


@needs_transformers
def test_a_model_that_changes_its_logits_in_another_way_is_not_divided() -> None:
    model = made("gpt2")
    head = model.model.get_output_embeddings()
    rounded = head.register_forward_hook(lambda m, i, logits: logits + 1e-5 * logits.abs().max())
    assert model.divided  # as the logits of a large model are, to rounding
    rounded.remove()
    head.register_forward_hook(lambda m, i, logits: logits - logits.mean(1, True))
    assert not model.divided


@needs_transformers
def test_an_encoder_is_a_plain_module() -> None:
    """BERT with masked padding: the router's gradients are those of the definition, one point at a time."""
    import transformers

    torch.manual_seed(0)
    settings: Any = SMALL | {"attn_implementation": "eager"}
    model = transformers.BertModel(transformers.BertConfig(**settings)).double().eval()
    tokens = torch.randint(3, 23, (4, 7))
    padded = torch.arange(7) < torch.tensor([7, 4, 5, 7])[:, None]
    regions = {"r": Region("encoder.layer.*.intermediate", "0:10")}
    router = Router(model, regions, ["f"], {"f": {"r": -0.5}}, {"input_ids": tokens[:1], "attention_mask": padded[:1]})

    def loss(rows: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = model(input_ids=tokens[rows], attention_mask=padded[rows]).pooler_output
        return found.square().sum()

    with router.route(torch.tensor([0, -1, 0, -1])):
        routed = parameter_gradients(model, loss(torch.arange(4)))
    weight = torch.ones(24, dtype=torch.float64)
    weight[:10] = -0.5
    hooks: dict[str, Any] = {
        f"encoder.layer.{i}.intermediate": lambda m, inputs, x: x * weight + (x * (1 - weight)).detach()
        for i in range(3)
    }
    expected = [torch.zeros_like(g) for g in routed]
    for row in range(4):
        with hooked(model, hooks if row in (0, 2) else {}):
            found = parameter_gradients(model, loss(torch.tensor([row])))
        expected = [a + b for a, b in zip(expected, found, strict=True)]
    for mine, theirs in zip(routed, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-7, atol=1e-12)
    plain = parameter_gradients(model, loss(torch.arange(4)))
    assert any(not torch.allclose(a, b) for a, b in zip(plain, expected, strict=True))


@needs_transformers
def test_a_kind_that_is_not_known_is_refused_with_how_to_name_its_sites() -> None:
    model = made("mixtral").float()  # its experts know no float64
    with pytest.raises(UserError) as error:
        region_of(model, "routing.regions.old", "mlp", [1], None)
    said = str(error.value)
    assert said.startswith(
        "routing.regions.old.part=mlp: layer 1 of a MixtralForCausalLM has no mlp of a known kind; the modules in "
        "model.model.layers.1 are self_attn."
    )
    assert said.endswith("; name one as routing.regions.old.site") and "\n" not in said
    names = said.split("are ")[1].split("; ")[0].split(", ")
    named = next(name for name in names if name.endswith("act_fn"))  # transformers 4 has one in each expert
    regions = {"old": Region(f"model.model.layers.1.{named}", "0:4")}
    tokens = torch.randint(3, 23, (2, 7))
    router = Router(model, regions, ["f"], {"f": {"old": 0.0}}, tokens)
    with router.route("f"):
        losses(model, tokens).sum().backward()


MISTAKES = [
    (("mpl", None, None), "unknown value of r.part: 'mpl'; did you mean mlp"),
    (("mlp", [3], None), "r.layers=3: is out of range; layers go from 0 to 2"),
    (("added", None, None), "r.part=added: no units were added; set model.expand and model.added"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES)
def test_mistakes_are_said_in_one_line(given: tuple[str, Any, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        region_of(made("own"), "r", *given)
    assert message in str(error.value)
    with pytest.raises(UserError, match="a Linear does not say where that is; name a site"):
        region_of(nn.Linear(2, 2), "r", "mlp", None, None)
