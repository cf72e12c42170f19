"""Causal language models of `transformers`, tiny and with random weights: packed documents, sites, routing."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from gradroute import Region, Router
from gradroute.errors import UserError
from gradroute.models.causal_lm import CausalLM
from gradroute.models.generation import complete, steered
from gradroute.models.loading import load
from gradroute.routing import Site

needs_transformers = pytest.mark.skipif(not find_spec("transformers"), reason="needs gradroute[hf]")
SITES = {"gpt2": "model.transformer.h.*.mlp.act", "gpt_neox": "model.gpt_neox.layers.*.mlp.act"}
BLOCKS = {"gpt2": "model.transformer.h.0", "gpt_neox": "model.gpt_neox.layers.0"}


def model_of(kind: str) -> CausalLM:
    import transformers

    torch.manual_seed(0)
    if kind == "gpt2":
        config: Any = transformers.GPT2Config(vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2)
    else:
        config = transformers.GPTNeoXConfig(
            vocab_size=11, max_position_embeddings=16, hidden_size=8, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=32,
        )  # fmt: skip
    return load(config).eval().double()


def tokens_of(rows: int, length: int) -> torch.Tensor:
    return torch.randint(11, (rows, length), generator=torch.Generator().manual_seed(0))


@needs_transformers
@pytest.mark.parametrize("kind", SITES)
def test_packed_documents_equal_one_document_at_a_time(kind: str) -> None:
    model, tokens = model_of(kind), tokens_of(2, 10)
    ids = torch.tensor([[0] * 4 + [1] * 5 + [2], [3] * 10])
    first = torch.cat([model(part) for part in tokens[:1].split([4, 5, 1], 1)], 1)
    torch.testing.assert_close(model(tokens, ids), torch.cat([first, model(tokens[1:])]), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(model(tokens, ids)[0], model(tokens)[0], atol=1e-3)


@needs_transformers
@pytest.mark.parametrize("kind", SITES)
def test_its_modules_are_sites(kind: str) -> None:
    model, tokens = model_of(kind), tokens_of(2, 6)
    ids = torch.tensor([[0, 0, 0, 1, 1, 1]] * 2)
    router = Router(model, {"old": Region(SITES[kind], "4:32")}, ["f"], {"f": {"old": 0.0}}, (tokens, ids))
    member = tokens < 5
    plain = model(tokens, ids)
    with router.route(torch.where(member, 0, -1)) as seen:
        routed = model(tokens, ids)
    assert torch.equal(plain, routed) and len(seen) == 2
    gradients = torch.autograd.grad(routed.square().sum(), list(seen.values()))
    for gradient in gradients:
        assert bool((gradient[member][:, 4:] == 0).all()) and bool((gradient[member][:, :4] != 0).any())
        assert bool((gradient[~member][:, 4:] != 0).any())
    assert not any(m._forward_hooks for m in model.modules())


@needs_transformers
@pytest.mark.parametrize("kind", SITES)
def test_completions_are_steered(kind: str) -> None:
    model, prompt = model_of(kind), tokens_of(1, 3)
    plain = complete(model, prompt, 4, temperature=0)
    for at in range(3, 7):
        assert plain[0, at] == model(plain[:, :at])[0, -1].argmax()
    with steered(model, Site(BLOCKS[kind]), 2, 50.0):
        shifted = model(prompt)
    assert not torch.allclose(shifted, model(prompt)) and model.unembedding.shape == (11, 8)
    with pytest.raises(UserError, match="a sequence of 17 tokens is longer than the model's context=16"):
        model(tokens_of(1, 17))


@needs_transformers
def test_a_local_folder_is_loaded(tmp_path: Path) -> None:
    model = model_of("gpt_neox").float()
    model.model.save_pretrained(tmp_path)
    assert torch.equal(load(tmp_path).eval()(tokens_of(1, 5)), model(tokens_of(1, 5)))


@needs_transformers
def test_what_cannot_be_loaded_is_refused_in_one_line(tmp_path: Path) -> None:
    for source, message in (
        (str(tmp_path), f"model '{tmp_path}': cannot be loaded as a causal"),
        (3, "model from a int: cannot be loaded as a causal"),
    ):
        with pytest.raises(UserError) as error:
            load(source)
        assert message in str(error.value) and "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        UserError, match=r"model 'some/model' needs the package transformers: pip install 'gradroute\[hf"
    ):
        load("some/model")
