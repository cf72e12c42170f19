"""Causal models of Hugging Face as the model of a run: tiny, with random weights, in a folder with a tokenizer."""

import importlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from interrupted import interrupted
from robust import one_line, reseal
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from small_language import unreachable
from small_pretrained import ENDS, UNITS, VOCABULARY, save_gguf, save_model

from gradroute import load
from gradroute.config.compose import configuration
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records.metrics import RELEARNED
from gradroute.records.tables import read_metrics
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.tasks.language import LanguageModelling

pytestmark = pytest.mark.skipif(not find_spec("transformers"), reason="needs gradroute[hf]")
ADDED = 8
SITES = {
    "gpt2": "model.transformer.h.[01].mlp.act", "gpt_neox": "model.gpt_neox.layers.[01].mlp.act",
    "llama": "model.model.layers.[01].mlp.act_fn",
}  # fmt: skip
STEPS = ["steps=[train,ablate,evaluate]", "finetune=null", "relearn=null"]
SMALL = [
    "experiment=stories_era", "trainer=smoke", "trainer.device=cpu", "model=hf", "dataset.tokenizer=pretrained",
    "dataset.stories=60", "dataset.test_stories=40", "dataset.length=48", "trainer.batch_size=8",
    "finetune.documents=[4]", "relearn.documents=[2]", "relearn.samples=2", "relearn.every=1",
]  # fmt: skip
FILES = ("metrics.csv", "ledger.csv", "model.safetensors", "summary.json", "tokenizer.json", "model.json")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of models, by their kinds."""
    folder = tmp_path_factory.mktemp("models")
    for kind in ENDS:
        save_model(folder / kind, kind)
    return folder


def overrides(model: Path) -> list[str]:
    """What a run of a model asks for; one whose MLPs can be expanded is."""
    kind, old = model.name, UNITS
    given = [f'routing.regions.{name}.site="{SITES.get(kind, "none")}"' for name in ("original", "added")]
    if kind in ("gpt_neox", "llama"):
        given += ["model.expand=[0,1]", f"model.added={ADDED}"]
    else:
        given, old = [*given, "ablation=zero", *STEPS], UNITS - ADDED
    units = [f"routing.regions.original.units='0:{old}'", f"routing.regions.added.units='{old}:{old + ADDED}'"]
    return [*SMALL, *given, *units, f"model.pretrained={model}"]


def config(folder: Path, model: Path, *changes: str) -> Config:
    """A run of a model, below a folder."""
    return configuration([*overrides(model), f"output_dir={folder}", *changes])


@pytest.fixture(scope="module", params=SITES)
def run(request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished run with every step that its model can do; the model that it began with is gone."""
    folder = tmp_path_factory.mktemp("runs")
    model = folder / request.param
    shutil.copytree(models / request.param, model)
    (made,) = execute([config(folder, model)])
    assert isinstance(made, Path), made
    shutil.rmtree(model)
    yield made


def kind_of(run: Path) -> str:
    kind: str = json.loads((run / "model.json").read_text())["config"]["model_type"]
    return kind


@pytest.mark.slow
def test_every_claim_holds_without_the_model_that_it_began_with(run: Path) -> None:
    claims = list(claims_of(run))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    heads = {row["head"] for row in read_metrics(run) if row["split"] == "test"}
    after = set() if kind_of(run) == "gpt2" else {"model_finetuned", "model_relearned_2"}
    assert heads == {"model", "model_ablated"} | after


@pytest.mark.slow
def test_a_run_is_loaded_from_its_folder_alone_and_tied_weights_are_kept_once(run: Path) -> None:
    model: Any = load(run).model
    with safe_open(run / "model.safetensors", "pt") as file:
        names = set(file.keys())
        for name, tensor in model.state_dict().items():
            if f"model.{name}" in names:
                assert torch.equal(file.get_tensor(f"model.{name}"), tensor)
    tied = model.model.get_input_embeddings().weight is model.unembedding
    assert tied == (kind_of(run) == "gpt2") == (len(names) == len(model.state_dict()) - 1)
    assert not model.training and model(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, VOCABULARY)
    assert json.loads((run / "model.json").read_text())["end"] == ENDS[kind_of(run)]


@pytest.mark.slow
@pytest.mark.parametrize("number", [3, 14])
def test_a_run_goes_on_to_the_bit_without_the_model_that_it_began_with(
    number: int, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lost in the training, and in relearning."""
    shutil.copytree(models / "gpt_neox", tmp_path / "gpt_neox")
    changes = ["checkpoint.minutes=0", "steps=[train,ablate,finetune,relearn,evaluate]"]
    own = config(tmp_path / "cut", tmp_path / "gpt_neox", *changes)
    (whole,) = execute([config(tmp_path / "whole", tmp_path / "gpt_neox", *changes)])
    (cut,) = interrupted(monkeypatch, [own], number)
    shutil.rmtree(tmp_path / "gpt_neox")
    kept = (cut / "model.json").read_text()
    (cut / "model.json").write_text(kept.replace("1e-05", "1e-03"))
    (refused,) = execute([own], folder=cut)
    assert isinstance(refused, UserError) and "model.json: damaged" in str(refused)
    (cut / "model.json").write_text(kept)
    (again,) = execute([own], folder=cut)
    assert again == cut and isinstance(whole, Path)
    for name in FILES:
        assert (cut / name).read_bytes() == (whole / name).read_bytes(), name


def test_an_expanded_model_begins_as_the_pretrained_one(models: Path, tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, models / "llama"))
    before, after = load_file(models / "llama" / "model.safetensors"), task.model.state_dict()
    for name, tensor in before.items():
        grown = after[f"model.{name}"]
        assert torch.equal(grown[tuple(slice(size) for size in tensor.shape)], tensor), name
        wider = [ADDED * ("mlp" in name and at == ("down_proj" in name)) for at in range(grown.dim())]
        assert [*grown.shape] == [size + more for size, more in zip(tensor.shape, wider, strict=True)], name
    for layer in (0, 1):  # new units read what old ones read, and nothing reads them yet
        gate, up, down = (
            after[f"model.model.layers.{layer}.mlp.{name}_proj.weight"] for name in ("gate", "up", "down")
        )
        both = torch.cat([gate, up], dim=1)
        assert all((both[:UNITS] == row).all(1).any() for row in both[UNITS:]) and not down[:, UNITS:].any()
    tokens = torch.arange(12).reshape(2, 6)
    plain = importlib.import_module("transformers").AutoModelForCausalLM.from_pretrained(models / "llama")
    torch.testing.assert_close(task.model(tokens), plain(tokens).logits)


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_the_scale_is_that_of_the_added_units_activations(kind: str, models: Path, tmp_path: Path) -> None:
    """Of the part that is not gated; the model still computes what it did."""
    one, scaled = (
        LanguageModelling(config(tmp_path, models / kind, f"model.added_scale={scale}")).model for scale in (1, 10)
    )
    tokens = torch.arange(12).reshape(2, 6)
    torch.testing.assert_close(scaled(tokens), one(tokens))
    names = [name for name, tensor in one.state_dict().items() if not torch.equal(scaled.state_dict()[name], tensor)]
    last = {"llama": "up_proj.weight", "gpt_neox": "dense_h_to_4h"}[kind]
    assert names and all(last in name for name in names)
    for name in names:
        before, after = one.state_dict()[name], scaled.state_dict()[name]
        assert torch.equal(after, torch.cat([before[:-ADDED], 10 * before[-ADDED:]]))


def test_an_untrained_model_is_expanded_like_a_new_one(models: Path, tmp_path: Path) -> None:
    task = LanguageModelling(config(tmp_path, models / "llama", "model.untrained=true"))
    for name in ("up", "down"):
        weight = task.model.state_dict()[f"model.model.layers.0.mlp.{name}_proj.weight"]
        new = weight[UNITS:] if name == "up" else weight[:, UNITS:]
        assert 0.01 < float(new.std()) < 0.03  # the configuration's initializer_range is 0.02


def test_routed_gradients_are_those_of_detached_activations(models: Path, tmp_path: Path) -> None:
    task = LanguageModelling(
        config(tmp_path, models / "gpt_neox", "losses.l1.original=0", "losses.l1.added=0", "dataset.stories=400")
    )
    every = task.batch(torch.arange(task.points))[4]
    batch = task.batch(every[..., 0].amax(1).argsort(descending=True)[:4])  # the most routed ones
    tokens, targets, documents, _, shares = batch
    torch.stack([value * weight for value, weight in task.objective()(*batch).values()]).sum().backward()
    wanted = {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}
    task.model.zero_grad()
    mask = torch.ones(*tokens.shape, UNITS + ADDED)
    mask[..., :UNITS] = 1 - 1.75 * shares[..., :1]

    def masked(module: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        return output * mask + (output * (1 - mask)).detach()

    acts = [task.model.get_submodule(f"model.gpt_neox.layers.{i}.mlp.act") for i in range(2)]
    hooks = [act.register_forward_hook(masked) for act in acts]
    logits = task.model(tokens, documents)
    for hook in hooks:
        hook.remove()
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    assert wanted and float(shares.max()) > 0.5
    for name, parameter in task.model.named_parameters():
        torch.testing.assert_close(wanted[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_untrained_weights_are_the_seeds_alone(models: Path, tmp_path: Path) -> None:
    def weights(*changes: str) -> torch.Tensor:
        weight: Any = LanguageModelling(config(tmp_path, models / "gpt2", *changes)).model
        found: torch.Tensor = weight.unembedding.detach()
        return found

    pretrained, first = weights(), weights("model.untrained=true")
    assert torch.equal(first, weights("model.untrained=true")) and not torch.equal(first, pretrained)
    assert not torch.equal(first, weights("model.untrained=true", "seed=1"))
    assert torch.equal(pretrained, weights("seed=1"))
    assert weights("model.untrained=true", "dataset.tokenizer=words").shape == (VOCABULARY, 16)


@pytest.mark.slow
def test_a_few_stories_are_learned(models: Path, tmp_path: Path) -> None:
    changes = ["trainer.epochs=30", "trainer.lr=0.01", "trainer.schedule=constant", "dataset.stories=20"]
    (made,) = execute([config(tmp_path, models / "gpt2", *changes, "routing.routes={}")])
    assert isinstance(made, Path), made
    rows = [
        r for r in read_metrics(made) if (r["split"], r["metric"], r["group"]) == ("train", "cross_entropy", "retain")
    ]
    assert rows[0]["value"] > 4 and rows[-1]["value"] < 1.5


def test_weights_in_half_precision_are_trained_in_float32(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "gpt2"
    shutil.copytree(models / "gpt2", folder)
    halves = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(halves, folder / "model.safetensors", {"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"dtype": "bfloat16", "torch_dtype": "bfloat16"}))
    task = LanguageModelling(config(tmp_path, folder))
    assert {parameter.dtype for parameter in task.model.parameters()} == {torch.float32}
    own = task.model.state_dict()["model.transformer.wte.weight"]
    assert torch.equal(own, halves["transformer.wte.weight"].float())


MISTAKES = [
    ("gpt_neox", ["dataset.tokenizer=words"], "dataset.tokenizer=words: must be pretrained, or the path of"),
    ("gpt_neox", ["dataset.length=65"], r"dataset.length=65: the context of '.*gpt_neox' is 64 tokens"),
    ("gpt_neox", ["dataset.vocabulary=99"], "dataset.vocabulary=99: the tokenizer pretrained has its own"),
    ("gpt_neox", ["model.expand=[0,2]"], "layer 2 is out of range; layers go from 0 to 1"),
    ("gpt_neox", ["model.added=0"], "model.added=0: must be more than 0 if, and only if"),
    ("gpt_neox", ["model.added_scale=2", "model.untrained=true"], "model.added_scale=2.0: must be 1.0, unless units"),
    ("gpt_neox", ["model.added_scale=0"], "model.added_scale=0.0: must be from 0.001"),
    ("gpt_neox", ["routing.regions.added.units='24:40'"], "units go from 0 to 31"),
    ("gpt_neox", ["model.pretrained=''"], "model.pretrained='': must be the name of a model"),
    ("gpt_neox", ["model.pretrained=/no/where"], "model.pretrained=/no/where: no such folder"),
    ("gpt_neox", ["stack=2"], "stack=2: cannot be used with model gradroute.models.pretrained.HuggingFace"),
    ("gpt_neox", ["model.layers=2"], "unknown key 'model.layers'; HuggingFace takes: pretrained, untrained, expand"),
    ("gpt2", ["model.expand=[0]", "model.added=8"], "layer 0: 'c_fc' of its MLP is a Conv1D; units can be added"),
    ("gpt2", ["ablation=remove"], "the layers around it could not be found"),
    ("mamba", [], r"the model .* attention-only"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "changes", "message"), MISTAKES, ids=[" ".join([k, *c]) for k, c, _ in MISTAKES])
def test_mistakes_are_said_in_one_line(
    kind: str, changes: list[str], message: str, models: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message) as error:
        (end,) = execute([config(tmp_path, models / kind, *changes)])
        raise end if isinstance(end, Exception) else AssertionError("nothing was refused")
    assert one_line(error.value) and not list(tmp_path.iterdir())


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def lack_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["gpt_neox.layers.1.mlp.dense_h_to_4h.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def lack_a_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    save_model(folder, "gpt_neox", shard="10KB")
    next(folder.glob("model-00002-of-*")).unlink()


INSTALLED = version("transformers") if find_spec("transformers") else ""
SHAPES = int(INSTALLED.partition(".")[0] or 0) >= 5  # whether it tells both shapes of weights that do not fit
ANOTHER = "has another shape than its configuration requires; choose another model"  # what is said otherwise
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "has no tokenizer.json; set dataset.tokenizer"),
    "no_end": (lambda f: (f / "tokenizer_config.json").write_text('{"eos_token": "<stop>"}'), "has no token <stop>"),
    "small_vocabulary": (
        lambda f: edit(f / "config.json", lambda c: c.update(vocab_size=700)),
        r"has 7\d\d tokens, and '.*' has 700; choose another model",
    ),
    "no_config": (lambda f: (f / "config.json").unlink(), "its configuration cannot be read"),
    "unknown_kind": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="new")), "its configuration cannot be read"
    ),
    "no_language_model": (
        lambda f: edit(f / "config.json", lambda c: c.update(model_type="vit")), "unknown kind of causal"
    ),
    "quantized": (
        lambda f: edit(f / "config.json", lambda c: c.update(quantization_config={"quant_method": "fp8"})),
        "is quantized and cannot be trained",
    ),
    "window": (
        lambda f: save_model(f, "mistral", sliding_window=32),
        r"dataset.length=48: the attention of '.*' is over 32 tokens; lower it",
    ),
    "gguf_cut": (
        lambda f: ((f / "model.gguf").write_bytes(b"GGUF" + bytes(60)), (f / "config.json").rename(f / "old.json")),
        "is not a whole GGUF file, or of an unknown kind",
    ),
    "no_weights": (lambda f: (f / "model.safetensors").unlink(), "cannot be loaded as a causal language model"),
    "weights_missing": (lack_weights, "its weights lack gpt_neox.layers.1.mlp.dense_h_to_4h.weight"),
    "weights_of_another_shape": (
        lambda f: edit(f / "config.json", lambda c: c.update(intermediate_size=32)),
        r"its .*mlp.* has shape .*24.*, and its configuration requires .*32" if SHAPES else ANOTHER,
    ),
    "too_large": (
        lambda f: edit(f / "config.json", lambda c: c.update(hidden_size=2**16, intermediate_size=2**26)),
        r"model: \d+\.\d GiB are needed and the machine has \d+\.\d; choose a smaller model.pretrained",
    ),
    "shard_missing": (lack_a_shard, "cannot be loaded as a causal language model"),
    "embedding_too_small": (
        lambda f: edit(f / "config.json", lambda c: c.update(vocab_size=VOCABULARY + 1)),
        r"has shape \(800, 16\), and its configuration requires \(801, 16\)" if SHAPES else ANOTHER,
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_a_model_that_cannot_be_used_is_refused_in_one_line(fault: str, models: Path, tmp_path: Path) -> None:
    spoil, message = FAULTS[fault]
    shutil.copytree(models / "gpt_neox", tmp_path / "gpt_neox")
    spoil(tmp_path / "gpt_neox")
    with pytest.raises(UserError, match=message) as error:
        LanguageModelling(config(tmp_path / "out", tmp_path / "gpt_neox"))
    assert one_line(error.value)


def test_code_that_comes_with_a_model_is_not_run(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked for consent to run code"))
    folder = tmp_path / "gpt_neox"
    shutil.copytree(models / "gpt_neox", folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\nraise SystemExit\n")
    code = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"}
    edit(folder / "config.json", lambda c: c.update(auto_map=code))
    own = config(tmp_path, folder)
    made = LanguageModelling(own)  # of a kind that transformers has, without the folder's code
    assert "auto_map" not in made.kept()["model.json"]
    edit(folder / "config.json", lambda c: c.update(model_type="new"))
    with pytest.raises(UserError, match="its configuration cannot be read"):
        LanguageModelling(own)
    assert not (tmp_path / "executed").exists()


HARM: dict[str, Callable[[dict[str, Any]], object]] = {
    "code": lambda c: c["config"].update(auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "kernel": lambda c: c["config"].update(attn_implementation="evil/kernel"),
    "kernel_hidden": lambda c: c["config"].update(_attn_implementation="evil/kernel"),
    "kind": lambda c: c["config"].update(model_type="os.system"),
    "kind_no_text": lambda c: c["config"].update(model_type=["gpt2"]),
    "no_kind": lambda c: c["config"].pop("model_type"),
    "kind_of_images": lambda c: c["config"].update(model_type="vit"),
    "kind_of_several": lambda c: c.update(config={"model_type": "gemma3"}),
    "layers": lambda c: c["config"].update(num_hidden_layers=10**9),
    "more_layers": lambda c: c["config"].update(num_hidden_layers=3),
    "width": lambda c: c["config"].update(hidden_size=2**30, num_attention_heads=2),
    "text": lambda c: c["config"].update(hidden_size="x"),
    "activation": lambda c: c["config"].update(hidden_act="os.system"),
    "list": lambda c: c.update(config=[1]),
    "end": lambda c: c.update(end="nowhere"),
    "end_no_text": lambda c: c.update(end=["x"]),
}


@pytest.mark.parametrize("harm", HARM)
def test_a_folder_made_to_harm_is_refused_in_one_line(
    harm: str, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished(models), run)
    edit(run / "model.json", HARM[harm])
    reseal(run)
    monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked for consent to run code"))
    for command in ([] if harm == "end" else [lambda: load(run)]) + [lambda: list(claims_of(run))]:
        with pytest.raises(UserError) as error:
            command()
        assert one_line(error.value) and (str(run) in str(error.value) or harm == "width")


def finished(models: Path) -> Path:
    """One finished run of a GPT-2, made once."""
    folder = models / "made"
    if not folder.exists():
        (end,) = execute([config(folder, models / "gpt2")])
        assert isinstance(end, Path), end
    (run,) = (folder / "stories_era").iterdir()
    return run


def test_without_the_package_the_extra_is_named(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = finished(models)
    monkeypatch.setitem(sys.modules, "transformers", None)
    for command in (lambda: load(run), lambda: LanguageModelling(config(tmp_path, models / "gpt2"))):
        with pytest.raises(UserError, match=r"needs the package transformers: pip install 'gradroute\[hf\]'"):
            command()


@pytest.mark.slow
def test_a_model_that_cannot_be_reached_ends_with_status_2(
    command: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = unreachable(command, tmp_path, monkeypatch, *SMALL, "model.pretrained=nobody/nothing")
    assert said.startswith("error: model 'nobody/nothing': its configuration cannot be read [")


@pytest.mark.slow
def test_a_model_is_found_by_its_name_in_the_cache_of_the_hub(
    command: Callable[..., Any], models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "hub" / "models--some--neox"
    shutil.copytree(models / "gpt_neox", place / "snapshots" / "0123")
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text("0123")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    given = [*overrides(models / "gpt_neox"), "model.pretrained=some/neox", *STEPS]
    result = command("gradroute-run", *given, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (made,) = tmp_path.glob("outputs/stories_era/*")
    assert {"model.json", "tokenizer.json"} <= {path.name for path in made.iterdir()}
    (place / "snapshots" / "0123" / "tokenizer.json").unlink()
    result = command("gradroute-run", *given, cwd=tmp_path)
    assert result.returncode == 2 and len(result.stderr.splitlines()) == 1
    assert "model 'some/neox': its tokenizer.json cannot be reached [" in result.stderr


@pytest.mark.slow
def test_the_command_line_runs_and_verifies(forked: Callable[..., Any], models: Path, tmp_path: Path) -> None:
    result = forked("gradroute-run", *overrides(models / "gpt_neox"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (made,) = tmp_path.glob("outputs/stories_era/*")
    checked = forked("gradroute-verify", str(made), cwd=tmp_path)
    assert checked.returncode == 0 and "17 of 17 claims hold" in checked.stdout


@pytest.mark.parametrize("kind", ["llama", "gpt_neox"])
def test_no_site_of_a_pretrained_model_needs_to_be_named(kind: str, models: Path, tmp_path: Path) -> None:
    given = [*SMALL, f"model.pretrained={models / kind}", "model.expand=[1]", f"model.added={ADDED}"]
    task = LanguageModelling(configuration([*given, f"output_dir={tmp_path}"]))
    regions = task.router.regions
    assert [regions[name].units for name in ("original", "added")] == [tuple(range(24)), tuple(range(24, 32))]
    (site,) = {site.module for region in regions.values() for site in region.sites}
    assert site.endswith("layers.1.mlp.units")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_pretrained_model_is_steered_by_layer(kind: str, models: Path, tmp_path: Path) -> None:
    given = [f"model.pretrained={models / kind}", "experiment=steering_scalar", "routing.regions.dimension.layers=[1]",
             "routing.regions.others.layers=[1]", "steering.layers=[1]", "steering.kl=[0.01]", "steering.samples=1",
             "steering.tokens=4", "steering.placebos=1", "dataset.stories=300", "dataset.mixed=0",
             f"output_dir={tmp_path}"]  # fmt: skip
    shared = [each for each in SMALL if not each.startswith(("experiment", "finetune", "relearn", "dataset.stories"))]
    (run,) = execute([configuration([*shared, *given])])
    assert isinstance(run, Path), run
    own, placebo = json.loads((run / "steering.json").read_text())["dimensions"]
    for measured in (own["measured"]["kl_0.01"], placebo["measured"]["kl_0.01"]):
        assert measured["kl"] == pytest.approx(0.01, rel=0.01) and measured["related"][2] > 0


def test_weights_in_several_files_are_those_in_one(models: Path, tmp_path: Path) -> None:
    folder = save_model(tmp_path / "llama", "llama", shard="10KB")
    assert len(list(folder.glob("*.safetensors"))) > 2 and not (folder / "model.safetensors").exists()
    one, several = (LanguageModelling(config(tmp_path, place)) for place in (models / "llama", folder))
    for name, tensor in one.model.state_dict().items():
        assert torch.equal(several.model.state_dict()[name], tensor), name


@pytest.mark.slow
@pytest.mark.skipif(not (find_spec("gguf") and find_spec("accelerate")), reason="needs gradroute[hf]")
def test_a_gguf_file_is_the_model_of_a_run(tmp_path: Path) -> None:
    """With its weights, its tokenizer and its groups of heads, also when only its folder is named."""
    folder = tmp_path / "llama"
    folder.mkdir()
    stored = save_gguf(folder / "tiny.gguf")
    given = [*SMALL, f"model.pretrained={folder}", "model.expand=[1]", f"model.added={ADDED}", "completions=null"]
    own = configuration([*given, f"output_dir={tmp_path / 'out'}"])
    task = LanguageModelling(own)
    found, tokenizer = task.model.state_dict(), task.data.tokenizer
    assert tokenizer.size == 260 and tokenizer.decode(tokenizer.encode(["In the wood"])[0]) == "In the wood"
    for layer, place in (("model.layers.0", "blk.0"), ("model.layers.1", "blk.1")):
        for theirs, mine in (("ffn_gate", "gate_proj"), ("ffn_up", "up_proj"), ("attn_v", "self_attn.v_proj")):
            tensor = found[f"model.{layer}.{mine if 'attn' in mine else f'mlp.{mine}'}.weight"]
            assert torch.equal(tensor[: len(stored[f"{place}.{theirs}"])], stored[f"{place}.{theirs}"])
    assert torch.equal(found["model.lm_head.weight"], stored["output"])
    (run,) = execute([own])
    assert isinstance(run, Path), run
    shutil.rmtree(folder)
    assert load(run).model(torch.zeros(1, 8, dtype=torch.int64)).shape == (1, 8, 260)


@pytest.mark.slow
def test_batches_are_split_to_fit_the_memory(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = config(tmp_path / "whole", models / "llama", "trainer.accumulate=4")
    task = LanguageModelling(whole)
    monkeypatch.setattr("gradroute.training.memory.PART", 2 * task.row_bytes)
    assert task.fitted(replace(whole.trainer, accumulate=1), 100).accumulate == 4  # of 8 rows
    runs = execute([whole, config(tmp_path / "split", models / "llama")])
    first, second = [pd.read_csv(run / "metrics.csv") for run in runs if isinstance(run, Path)]
    pd.testing.assert_frame_equal(first, second)
    alike = ~first["head"].str.startswith(RELEARNED)  # its small batches are split otherwise, and sums round
    assert alike.sum() > 8 and first[alike].equals(second[alike])
    (log,) = (tmp_path / "split").glob("*/*/log.txt")
    assert "train: takes each batch in 4 parts" in log.read_text()


def test_batches_that_a_penalty_takes_whole_are_not_split(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    penalty = "losses.penalties=[{_target_: gradroute.training.penalties.Correlation, weight: 0.1}]"
    given = config(tmp_path, models / "llama", penalty)
    task = LanguageModelling(given)
    monkeypatch.setattr("gradroute.training.memory.PART", task.row_bytes)
    assert task.fitted(given.trainer, 100).accumulate == 1
