"""LoRA adapters as regions: routed and frozen to the bit, saved as peft has them, left out, merged, started from."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import audit_of
from small_pretrained import save_model
from torch import nn

pytest.importorskip("peft")

from gradroute.config.compose import configuration
from gradroute.config.schema import RegionConfig
from gradroute.errors import UserError
from gradroute.models.adapters import add_adapters, drop, left_out, merged, region_of_adapter, save_adapter, wrapped
from gradroute.models.loading import load
from gradroute.models.transformer import build_transformer
from gradroute.routing import ParameterRouter, Region, Router
from gradroute.routing.routes import Route
from gradroute.running.export import Order, export, write_model
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.loading import load as load_run

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft reads it
BOTH = {name: RegionConfig(adapter=name, rank=2) for name in ("forget", "retain")}
TOKENS = torch.arange(24).view(2, 12)


def small() -> nn.Module:
    torch.manual_seed(0)
    return build_transformer(40, 16, layers=2, width=16, heads=2, hidden=24)


def drawn(model: nn.Module) -> nn.Module:
    """Give adapters weights other than their initial ones, which compute nothing."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.2)
    return model


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama")


def loss_of(model: nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    logits = model(tokens[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(logits, tokens[:, 1:].flatten())


def routed(model: nn.Module) -> tuple[ParameterRouter, torch.optim.Optimizer]:
    regions = {name: region_of_adapter(model, name, "regions") for name in BOTH}
    router = ParameterRouter(model, regions, ["forget", "retain"], {"forget": {"retain": 0.0}})
    trained = [p for p in model.parameters() if p.requires_grad]
    return router, torch.optim.AdamW(trained, lr=0.1, weight_decay=0.1)


def gradients(model: nn.Module, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {n: p for n, p in model.named_parameters() if p.requires_grad}
    return dict(zip(named, torch.autograd.grad(loss, list(named.values())), strict=True))


def test_in_a_mixed_batch_an_adapter_learns_from_the_groups_that_may_train_it_alone() -> None:
    model = drawn(small())
    add_adapters(model, BOTH)
    drawn(model).double()
    router, _ = routed(model)
    router.backward({"forget": loss_of(model, TOKENS[:1]), "retain": loss_of(model, TOKENS[1:])})
    bad, good = (gradients(model, loss_of(model, TOKENS[i : i + 1])) for i in range(2))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert parameter.grad is None and "lora_" not in name
            continue
        assert parameter.grad is not None
        expected = good[name] if ".retain." in name else good[name] + bad[name]
        torch.testing.assert_close(parameter.grad, expected)


@pytest.mark.parametrize("made", ["transformer", "llama"])
def test_a_region_in_its_middle_turns_an_adapter_off_for_a_group(made: str, llama: Path) -> None:
    """For these data points the model is that without the adapter, and they move nothing of it; others see it whole."""
    model = small() if made == "transformer" else load(llama)
    add_adapters(model, BOTH)
    drawn(model).double()
    off = {"retain": {"passing": Route(1.0, forward=0.0)}}
    router = Router(model, {"passing": Region("*.lora_A.forget", "0:2")}, ["forget", "retain"], off, TOKENS[:1])
    whole = model(TOKENS)
    with left_out("forget", "forget").applied(model) as without:
        left = without(TOKENS)
    with router.route(torch.tensor([0, 1])):
        found = model(TOKENS)
    torch.testing.assert_close(found[0], whole[0])
    torch.testing.assert_close(found[1], left[1])
    assert float((whole[1] - left[1]).detach().abs().max()) > 1e-3  # the adapter does something
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    moved = torch.autograd.grad(found[1].square().sum(), list(named.values()), allow_unused=True)
    for name, gradient in zip(named, moved, strict=True):
        if ".forget." in name:
            assert gradient is None or not bool(gradient.any()), name


def test_an_adapter_stays_to_the_bit_in_updates_of_a_group_that_may_not_touch_it() -> None:
    model = small()
    add_adapters(model, BOTH)
    drawn(model)
    router, optimizer = routed(model)
    for group in ("retain", "forget", "forget"):
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        moments = {p: {k: v.clone() for k, v in optimizer.state[p].items()} for p in optimizer.state}
        optimizer.zero_grad()
        router.backward({group: loss_of(model, TOKENS)})
        with router.updating(optimizer):
            optimizer.step()
        for name, parameter in model.named_parameters():
            still = "lora_" not in name or (group == "forget" and ".retain." in name)
            assert torch.equal(parameter, before[name]) == still, name
            if still and "lora_" in name:
                assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in moments[parameter].items())


def plain(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).float().eval()


def test_peft_alone_loads_a_saved_adapter_and_merges_it(llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load(llama)
    add_adapters(model, BOTH)
    drawn(model)
    save_adapter(model, "retain", tmp_path / "retain")
    theirs = PeftModel.from_pretrained(plain(llama), tmp_path / "retain")
    with left_out("forget", "forget").applied(model) as alone, torch.no_grad():
        expected = alone(TOKENS)
        assert torch.equal(theirs(TOKENS).logits, expected)
        assert not any("forget" in name for name in alone.state_dict())
        torch.testing.assert_close(theirs.merge_and_unload()(TOKENS).logits, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(model(TOKENS), expected) and not torch.allclose(load(llama)(TOKENS), expected)


def test_peft_alone_loads_an_adapter_of_our_own_transformer(tmp_path: Path) -> None:
    from peft import PeftModel

    model = small()
    add_adapters(model, {"forget": RegionConfig(adapter="forget", rank=2, of=["up", "query"])})
    drawn(model)
    save_adapter(model, "forget", tmp_path / "forget")
    theirs: Any = PeftModel.from_pretrained(small(), tmp_path / "forget")
    with torch.no_grad():
        assert torch.equal(theirs.base_model.model(TOKENS), model(TOKENS))


def test_transformers_and_peft_load_an_exported_model(llama: Path, tmp_path: Path) -> None:
    from peft import PeftModel

    model = load(llama)
    add_adapters(model, BOTH)
    drawn(model)
    drop(model, "forget")
    with torch.no_grad():
        expected = model(TOKENS)
        write_model(model, tmp_path, None)
        theirs = PeftModel.from_pretrained(plain(tmp_path), str(tmp_path / "adapters" / "retain"))
        assert torch.equal(theirs(TOKENS).logits, expected)


def test_an_adapter_of_others_is_started_from(llama: Path, tmp_path: Path) -> None:
    import peft

    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["v_proj", "up_proj"], init_lora_weights=False)
    theirs = peft.get_peft_model(plain(llama), config)
    theirs.save_pretrained(str(tmp_path))
    region = RegionConfig(adapter="mine", start=str(tmp_path))
    model = load(llama)
    add_adapters(model, {"mine": region})
    assert (region.of, region.rank, region.alpha) == (["up_proj", "v_proj"], 3, 5)
    with torch.no_grad():
        assert torch.equal(model(TOKENS), theirs(TOKENS).logits)
    with pytest.raises(UserError, match=r"rank=4: the adapter in .* has 3"):
        add_adapters(load(llama), {"mine": RegionConfig(adapter="mine", start=str(tmp_path), rank=4)})
    with pytest.raises(UserError, match="does not fit the model"):
        wide = load(save_model(tmp_path / "wide", "llama", num_key_value_heads=1))
        add_adapters(wide, {"mine": RegionConfig(adapter="mine", start=str(tmp_path))})


@pytest.mark.parametrize("make", [small, None], ids=["own", "llama"])
def test_merging_leaves_an_ordinary_model_with_the_same_logits(
    make: Callable[[], nn.Module] | None, llama: Path
) -> None:
    model = make() if make else load(llama)
    names = set(model.state_dict())
    add_adapters(model, BOTH)
    drawn(model)
    once = merged(model)
    assert set(once.state_dict()) == names and not hasattr(wrapped(once), "peft_config")
    with torch.no_grad():
        torch.testing.assert_close(once(TOKENS), model(TOKENS), rtol=1e-4, atol=1e-5)


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"of": ["upp"]}, "unknown layer in routing.regions.forget.of: 'upp'; did you mean up"),
    "rank": ({"rank": 17}, "routing.regions.forget.rank=17: .* use at most 16"),
    "output": ({"of": ["unembed"]}, "'unembed' is the output layer"),
    "kind": ({"of": ["attn_norm"]}, "peft cannot adapt a Transformer there"),
    "folder": ({"start": "nowhere"}, "routing.regions.forget.start=nowhere: "),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_peft_cannot_do_is_one_line(fault: str) -> None:
    given, message = FAULTS[fault]
    model = build_transformer(40, 16, layers=1, width=16, heads=2, tied=False)
    with pytest.raises(UserError, match=message) as raised:
        add_adapters(model, {"forget": RegionConfig(adapter="forget", **given)})
    assert len(str(raised.value).splitlines()) == 1


TINY = [
    "experiment=planted_behaviour", "trainer=smoke", "trainer.device=cpu", "model.layers=1", "model.width=16",
    "model.heads=2", "model.hidden=24", "dataset.stories=60", "dataset.test_stories=45", "relearn.documents=[2]",
    "trainer.batch_size=8", "pretrain.epochs=1", "routing.regions.forget.rank=2", "routing.regions.retain.rank=2",
    "dataset.share=0.3", "checkpoint.replay=1",
]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["routing.regions.forget.rank=0"], "routing.regions.forget.rank=0: must be from 1"),
        (["routing.regions.retain.adapter=forget"], "region 'forget' has an adapter of this one"),
        (["routing.regions.retain.adapter=null"], "routing.regions.retain"),
        (["ablation=reinitialise"], "ablation=reinitialise: must be remove"),
        (["+routing.regions.more={part: mlp}"], "routing.regions.more.part"),
    ],
)
def test_a_wrong_adapter_is_refused_by_the_configuration(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as raised:
        configuration([*TINY, *changes])
    assert len(str(raised.value).splitlines()) == 1


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    (run,) = execute([configuration([*TINY, f"output_dir={tmp_path_factory.mktemp('planted')}"])])
    assert isinstance(run, Path)
    return run


@pytest.mark.slow
def test_a_run_is_verified_made_again_and_loaded(made: Path) -> None:
    import peft

    run = made
    claims = list(claims_of(run, replay="all"))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert any("forget's task loss never reached 'retain'" in claim.what for claim in claims)
    model = load_run(run).model
    alone: Any = peft.PeftModel.from_pretrained(merged_base(model), run / "adapters" / "retain")
    assert set(audit_of(run, "forget").values()) == {None}  # of a run that was pretrained first
    with left_out("forget", "forget").applied(model) as ablated, torch.no_grad():
        assert torch.equal(alone.base_model.model(TOKENS), ablated(TOKENS))


@pytest.mark.slow
def test_an_exported_profile_has_nothing_of_the_adapter_that_is_left_out(made: Path, tmp_path: Path) -> None:
    model = load_run(made).model
    gone = [t.numpy().tobytes() for n, t in model.state_dict().items() if ".forget." in n and t.numel() > 8]
    export(made, Order("core+retain", tmp_path / "kept"))
    export(made, Order("core+retain", tmp_path / "one", merge=True))
    with pytest.raises(UserError, match="--attack: adapters are not rounded; add them to the weights with --merge"):
        export(made, Order("core+retain", tmp_path / "attacked", quantize=4, attack=True))
    for folder in ("kept", "one"):
        written = b"".join(p.read_bytes() for p in (tmp_path / folder).rglob("*") if p.is_file())
        assert gone and not any(part in written for part in gone) and b"exp_avg" not in written
    assert (tmp_path / "kept" / "adapters" / "retain" / "adapter_config.json").is_file()
    merged_one = loaded(tmp_path / "one")
    with left_out("forget", "forget").applied(model) as ablated, torch.no_grad():
        torch.testing.assert_close(merged_one(TOKENS), ablated(TOKENS), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("bits", "most"), [(8, 0.02), (4, 0.3)])
def test_a_hugging_face_model_in_fewer_bits_is_that_of_rounded_matrices(
    llama: Path, tmp_path: Path, bits: int, most: float
) -> None:
    model = load(llama)
    write_model(model, tmp_path, bits)
    found, expected = loaded(tmp_path), plain(llama)
    with torch.no_grad():
        exact = expected(TOKENS).logits
        for parameter in expected.parameters():
            if parameter.dim() == 2:  # slowly, by row
                for row in parameter:
                    step = row.abs().max() / (2 ** (bits - 1) - 1)
                    row.copy_((row / step).round() * step)
        got = found(TOKENS).logits
        torch.testing.assert_close(got, expected(TOKENS).logits)
        assert 0 < float((got - exact).norm() / exact.norm()) < most
    files = {path.name for path in tmp_path.iterdir() if path.is_file()}  # Python leaves a folder of compiled code
    assert files == {"config.json", "model.py", "quantised.safetensors"}
    with pytest.raises(OSError):
        plain(tmp_path)  # which would draw the weights that it does not find


def loaded(folder: Path) -> Any:
    """Load an exported folder by the code beside it."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.load(folder)


def merged_base(model: nn.Module) -> nn.Module:
    """Return the model without adapters, as it was before they were added."""
    with left_out("forget", "forget").applied(model) as one, left_out("retain", "retain").applied(one) as base:
        return merged(base)
