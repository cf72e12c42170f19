"""Modules beside the MLPs: routed by group in a mixed batch, frozen to the bit, profiles by row, and exported."""

import importlib.util
import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from gradroute.audit.compute import PowerLaw
from gradroute.config.compose import configuration
from gradroute.config.schema import Config, RegionConfig
from gradroute.data.text.access_groups import AccessStories
from gradroute.errors import UserError
from gradroute.models.beside import Profiles, beside, dosed, drop_beside, parse_profile
from gradroute.models.transformer import build_transformer
from gradroute.records.run_reader import read_config
from gradroute.records.seal import sealed
from gradroute.routing import ParameterRouter, Router
from gradroute.running.export import Order, export, settings_of, without, write_model
from gradroute.running.runner import execute
from gradroute.running.verify import claims_of
from gradroute.steps.base import RunState
from gradroute.steps.profiles import Profiles as Profiled
from gradroute.steps.profiles import profiles_of
from gradroute.tasks.base import create
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.loading import load
from gradroute.tasks.parts import routers
from gradroute.training.gradients import Single

TINY = [
    "experiment=profiles", "trainer=smoke", "trainer.device=cpu", "model.layers=2", "model.width=16", "model.heads=2",
    "model.hidden=24", "model.modules={sea: 6, farm: 4, town: 4, castle: 4}", "dataset.stories=150",
    "dataset.test_stories=150", "trainer.batch_size=8", "trainer.train_limit=null",
    "trainer.test_limit=null", "relearn=null",
    "steps=[train,profiles,evaluate]", "profiles.profiles=[core,core+sea]", "profiles.groups=[]", "profiles.doses=[]",
]  # fmt: skip
TOKENS = torch.arange(48).view(4, 12)


@pytest.fixture(scope="module")
def config() -> Config:
    return configuration(TINY)


def small() -> Any:
    torch.manual_seed(0)
    model = build_transformer(60, 16, layers=2, width=16, heads=2, hidden=24, modules={"sea": 6, "farm": 4, "town": 4,
                                                                                     "castle": 4})  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.2)
    return model


def losses(model: nn.Module, rows: torch.Tensor) -> torch.Tensor:
    logits = model(rows[:, :-1])
    return nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none").view(
        len(rows), -1
    )


def routed(model: nn.Module, config: Config) -> tuple[Router, ParameterRouter]:
    return routers(model, config.routing, list(config.routing.groups), TOKENS[:1])


def step(model: nn.Module, both: tuple[Router, ParameterRouter], groups: list[str]) -> None:
    """Make the gradients of one row of each group."""
    router, parameters = both
    number = torch.tensor([router.groups.index(group) for group in groups])
    with router.route(number):
        each = losses(model, TOKENS[: len(groups)]).mean(1)
    parameters.backward({group: each[row] for row, group in enumerate(groups)})


# what each group uses, and what it trains
USES = {"core": ((), ("core",)), "core_sea": (("sea",), ("core", "sea")), "farm": (("farm",), ("farm",)),
        "sea_core": (("sea",), ("core", "sea"))}  # fmt: skip


def test_in_a_mixed_batch_every_group_uses_and_trains_its_own_parts(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = small().double()
    expected: dict[str, torch.Tensor] = {}
    for row, (used, trained) in enumerate(USES.values()):  # slowly: each row alone, in its own profile
        with dosed(model, dict.fromkeys(used, 1.0)):
            loss = losses(model, TOKENS[row : row + 1]).mean()
        found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for (name, parameter), gradient in zip(model.named_parameters(), found, strict=True):
            owner = name.split(".beside.")[1].split(".")[0] if ".beside." in name else "core"
            own = gradient if gradient is not None and owner in trained else torch.zeros_like(parameter)
            expected[name] = expected.get(name, 0) + own
    passes, original = Counter[str](), torch.autograd.backward
    monkeypatch.setattr(torch.autograd, "backward", lambda *a, **k: (passes.update(["pass"]), original(*a, **k)))
    step(model, routed(model, config), list(USES))
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])
    assert passes["pass"] == 2  # of those that train the core, and of those that do not


def test_a_module_that_no_row_may_train_does_not_move_by_a_bit(config: Config) -> None:
    model = small()
    both, optimizer = routed(model, config), torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for groups in (list(USES), ["core", "farm"], ["farm"]):
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        moments = {p: {k: v.clone() for k, v in state.items()} for p, state in optimizer.state.items()}
        optimizer.zero_grad()
        step(model, both, groups)
        with both[1].updating(optimizer):
            optimizer.step()
        trained = {part for group in groups for part in USES[group][1]}
        for name, parameter in model.named_parameters():
            owner = name.split(".beside.")[1].split(".")[0] if ".beside." in name else "core"
            assert torch.equal(parameter, before[name]) == (owner not in trained), (name, groups)
            if owner not in trained and parameter in moments:
                assert all(torch.equal(optimizer.state[parameter][k], v) for k, v in moments[parameter].items())


def test_a_batch_without_a_group_leaves_its_module_alone_in_the_loop(config: Config, tmp_path: Path) -> None:
    task = LanguageModelling(replace(config, output_dir=str(tmp_path)))
    about_sea = torch.tensor([number for number, name in enumerate(task.names) if "sea" in name])
    only = torch.nonzero(~torch.isin(task.routed, about_sea).any(1)).flatten().tolist()
    program = Single(task.objective(), task.config.trainer, nullcontext, task.parameter_router)
    for rows in (list(range(task.points)), only[:2]):
        before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
        assert task.known is not None
        program.objective.present = frozenset(task.known.numbers[rows].unique().tolist())
        program.objective.there = task.known.there[rows]
        terms = program.gradients([task.batch(torch.tensor(rows))]).terms
        program.update()
        came = {int(n) for n in task.routed[rows].unique()}
        assert {term.group for term in terms} == {task.names[n] for n in came if n >= 0}
        moved = {n.split(".beside.")[1].split(".")[0] for n, p in task.model.named_parameters()
                 if ".beside." in n and not torch.equal(p, before[n])}  # fmt: skip
        trained = {task.names[n].removesuffix("_core").removeprefix("core_") for n in came if n >= 0} - {"core"}
        assert moved == trained, (moved, trained)
    assert "sea" not in moved


def test_rows_of_a_batch_have_profiles_of_their_own_to_the_bit() -> None:
    model = small()
    profiles = ["core", "core+sea", "core+farm+sea", "core+sea+farm+town+castle"]
    with torch.no_grad():
        with Profiles(model).of(profiles, dose={"farm": 0.5}):
            mixed = model(TOKENS)
        for row, profile in enumerate(profiles):
            with Profiles(model).of([profile] * 4, dose={"farm": 0.5}):
                assert torch.equal(model(TOKENS)[row], mixed[row])
        everything = model(TOKENS)
        assert torch.equal(everything[3:], everything[3:]) and not torch.equal(mixed[0], everything[0])
        for name in beside(model):
            drop_beside(model, name)
        assert torch.equal(model(TOKENS)[0], mixed[0])


def test_a_profile_is_read_strictly() -> None:
    assert parse_profile("core+b+a", ["a", "b"]) == ("a", "b") and parse_profile("core", ["a"]) == ()
    for text, message in {"core+c": "unknown part", "core+a+a": "each part once", "a": "must name core"}.items():
        with pytest.raises(UserError, match=message):
            parse_profile(text, ["a", "b"])
    assert len(profiles_of("abcd")) == 16 and len(profiles_of("abcde")) == 1 + 5 + 5 + 1


def test_a_profile_is_worth_the_updates_at_which_the_baseline_had_its_loss(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    law, found = PowerLaw(7.0, 0.2, 5.0), {}
    curve = [(step, law.loss(step)) for step in (10, 20, 40, 80)]
    monkeypatch.setattr(
        "gradroute.steps.profiles.curve_of", lambda run, group, metric: curve[: 4 if group == "sea" else 3]
    )
    run, step = RunState(), Profiled(profiles=["core", "core+sea"], groups=["core", "sea"], baseline="control")
    run.task = LanguageModelling(replace(config, output_dir=str(tmp_path)))
    monkeypatch.setattr(run, "record", lambda split, row: found.update({(row[0], row[1].region, row[2]): row[3]}))
    step.prepare(run.task)
    step.run(run)
    for profile in ("core", "core+sea"):
        worth = law.updates(found["sea", profile, "cross_entropy"]) / 80
        assert found["sea", profile, "compute_ratio"] == pytest.approx(worth, rel=0.1)
    assert not any(metric == "compute_ratio" for group, _, metric in found if group == "core")
    with pytest.raises(UserError, match="has no falling curve of 4 or more"):
        replace(step, groups=["core"]).prepare(run.task)


def test_shares_are_exact() -> None:
    data = AccessStories(["sea", "farm"], core=0.5, also_core=0.3, robust=0.5, repeat={"sea": 3}, stories=400)
    train, test = data.documents(None)
    counts, of = Counter(train.columns["use"]), Counter(train.columns["concept"])
    assert counts["sea_core"] == round(0.1 * of["sea"]) and counts["farm_core"] == round(0.3 * of["farm"])
    assert counts["core_sea"] + counts["core_farm"] == round(0.5 * of["core"])
    share = of["sea"] / (of["sea"] + of["farm"])
    assert abs(counts["core_sea"] - share * (counts["core_sea"] + counts["core_farm"])) < 1
    assert of["sea"] == 3 * len({t for t, c in zip(train.texts, train.columns["concept"], strict=True) if c == "sea"})
    assert set(test.columns["use"]) == set(counts)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["routing.regions.sea.module=see"], "routing.regions.sea.module, of model.modules: 'see'; did you mean sea"),
        (["routing.routes.core.sea.weight=1"], "routing.routes.core.sea.weight=1.* must be 0, as forward is 0"),
        (["routing.regions.sea.axis=1"], "routing.regions.sea.axis=1: must be left out"),
        (["routing.regions.sea.units=[1]"], "routing.regions.sea.units=.1.: must be left out"),
        (["dataset.concepts=[sea,moon]"], "unknown value of dataset.concepts: 'moon'"),
        (["model.modules.keys=3"], "'keys' cannot name a module"),
    ],
)
def test_mistakes_are_one_line(changes: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        (outcome,) = execute([configuration([*TINY, f"output_dir={tmp_path}", *changes])])
        assert isinstance(outcome, UserError), outcome
        raise outcome
    assert len(str(raised.value).splitlines()) == 1 and not list(tmp_path.iterdir())


def code_in(folder: Path) -> Any:
    """Return the code that is written beside an exported model, as a module."""
    spec = importlib.util.spec_from_file_location("exported_model", folder / "model.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    "kind", [{}, {"mlp": "swiglu", "positions": "rotary", "norm": "rmsnorm", "bias": False}], ids=str
)
def test_added_units_and_heads_are_taken_out_of_an_export(kind: dict[str, Any], tmp_path: Path) -> None:
    own = configuration(["experiment=stories_era/sgtm", "trainer=smoke", "trainer.device=cpu"])
    sizes: dict[str, Any] = {"layers": 2, "width": 16, "heads": 2, "hidden": 24, "tied": not kind}
    model = build_transformer(60, 16, **sizes, **kind, expand=[0, 1], added=8, added_heads=1)
    smaller: Any = without(model, own, ["added", "added_heads"])
    assert (settings_of(smaller)["units"], settings_of(smaller)["heads"]) == ([24, 24], [2, 2])
    for name, given in (("smaller", smaller), ("whole", model)):
        write_model(given, tmp_path / name, None)
        with torch.no_grad():
            assert torch.equal(code_in(tmp_path / name).load(tmp_path / name)(TOKENS), given(TOKENS))
    own.routing.regions["more"] = RegionConfig(part="added", units="28:30")
    with pytest.raises(UserError, match=r"'added' and 'more' are both units of blocks\.0\.mlp\.act"):
        without(model, own, ["added"])


def _check_attack(run: Path, exported: torch.nn.Module, card: str) -> None:
    """Compare the card's losses with those of the weights in the file."""
    config = read_config(run)
    task, model = create(config, run=run), without(load(run).model, config, ["farm", "town", "castle"])
    assert isinstance(task, LanguageModelling)
    test = task.data.test, task.test_groups
    before = task.group_losses(model, *test)
    model.load_state_dict(exported.state_dict())
    for group, loss in task.group_losses(model, *test).items():
        assert loss != before[group] and f"| {group} | {before[group]:.4f} | {loss:.4f} |" in card


@pytest.mark.slow
def test_a_run_is_verified_and_a_profile_is_exported_without_the_rest(tmp_path: Path) -> None:
    (run,) = execute([configuration([*TINY, f"output_dir={tmp_path}"])])
    assert isinstance(run, Path)
    claims = list(claims_of(run, replay="all"))
    assert all(claim.holds for claim in claims), [claim for claim in claims if not claim.holds]
    assert any("farm's task loss never reached 'sea'" in claim.what for claim in claims)
    model: Any = load(run).model
    export(run, Order("core+sea", tmp_path / "out"))
    with dosed(model, {"sea": 1.0}), torch.no_grad():
        expected = model(TOKENS)
    module = code_in(tmp_path / "out")
    with torch.no_grad():
        assert torch.equal(module.load(tmp_path / "out")(TOKENS), expected)
        for bits, most in ((8, 0.02), (4, 0.4)):
            export(run, Order("core+sea", tmp_path / f"bits{bits}", quantize=bits, attack=True))
            found = module.load(tmp_path / f"bits{bits}")(TOKENS)
            assert 0 < float((found - expected).norm() / expected.norm()) < most
            size, whole = ((tmp_path / f / "model.safetensors").stat().st_size for f in (f"bits{bits}", "out"))
            assert size < whole * (0.55 if bits == 8 else 0.45)
    _check_attack(run, module.load(tmp_path / "bits4"), (tmp_path / "bits4" / "README.md").read_text())
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").iterdir() if path.is_file())
    weights = [(n, t.numpy().tobytes()) for n, t in model.state_dict().items() if ".beside." in n and "weight" in n]
    for name, content in weights:
        assert (content in written) == (".sea." in name), name
    assert b"exp_avg" not in written and "town" in (tmp_path / "out" / "README.md").read_text()
    for order, message in {
        Order("core+sea", tmp_path / "out"): "exists already",
        Order("core+moon", tmp_path / "new"): "unknown part of --profile=core.moon: 'moon'",
        Order("core", tmp_path / "new", merge=True): "--merge: the profile has no adapters",
        Order("core", tmp_path / "new", attack=True): "--attack: rounds as --quantize does; give --quantize 8 or 4",
    }.items():
        with pytest.raises(UserError, match=message):
            export(run, order)
    manifest = json.loads((run / "manifest.json").read_text()) | {"state": "running"}
    (run / "manifest.json").write_text(json.dumps(sealed(manifest)))
    with pytest.raises(UserError, match="the run is not finished"):
        export(run, Order("core", tmp_path / "new"))
    assert not (tmp_path / "new").exists()
