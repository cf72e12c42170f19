"""Training by a compiled model: the updates of the plain one, also after a break; and where it cannot be had."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from small_language import config, goes_on_to_the_bit, weights
from torch._inductor import config as inductor

from gradroute.config.compose import configuration
from gradroute.errors import UserError
from gradroute.tasks.base import create
from gradroute.tasks.image_objectives import DecoderObjective
from gradroute.tasks.language import LanguageModelling
from gradroute.training.compiling import compiled, compiled_update, require_compiler
from gradroute.training.devices import computing
from gradroute.training.gradients import Single, total


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of a compiled model, so that a test can tell that there was one."""
    rows, compile_ = list[int](), torch.compile

    def counting(function: Any, **options: Any) -> Any:
        program = compile_(function, **options)

        def call(*inputs: Any) -> Any:
            rows.append(len(inputs[0]))
            return program(*inputs)

        return call

    monkeypatch.setattr(torch, "compile", counting)
    return rows


EVEN = "trainer.batch_size=41"  # of 123 documents: the compiler of C++ has one size to compile for


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "backend", "size", "shapes"),
    [
        ("stories_era", "inductor", EVEN, 1),
        ("stories_era", "aot_eager", "trainer.batch_size=7", 2),  # the last batch is smaller
        ("stories_era/control", "aot_eager", "trainer.batch_size=7", 2),
        ("stories_era/sgtm", "aot_eager", "trainer.batch_size=7", 2),
    ],
)
def test_a_compiled_model_makes_the_same_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int],
    experiment: str, backend: str, size: str, shapes: int,
) -> None:  # fmt: skip
    """With routed activations of two layers, without routes, and with routed parameters."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    plain = weights(config(tmp_path, experiment, size), LanguageModelling.objective)
    assert not calls
    fast = weights(config(tmp_path, experiment, size, "trainer.compile=true"), LanguageModelling.objective)
    assert len(calls) == len(plain[0]) > 2 and len(set(calls)) == shapes
    assert fast[0] == pytest.approx(plain[0], rel=1e-6)
    for one, other in zip(plain[1], fast[1], strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-7)  # of updates of 2e-3


@pytest.mark.slow
def test_a_compiled_run_goes_on_to_the_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: list[int]) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    goes_on_to_the_bit(tmp_path, monkeypatch, "trainer.compile=true", EVEN, "trainer.epochs=2")
    assert len(calls) > 10


def test_the_model_is_its_plain_self_after_the_training(tmp_path: Path) -> None:
    objective = LanguageModelling(config(tmp_path, "stories_era")).objective()
    names = [name for name, _ in objective.named_parameters()]
    with compiled(objective):
        assert objective.program is not None and [name for name, _ in objective.named_parameters()] == names
    assert objective.program is None


def test_a_compiler_that_fails_is_told_of_in_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(UserError) as error, inductor.patch({"cpp.cxx": ("no such compiler",)}):
        require_compiler(torch.device("cpu"))
    text = str(error.value)
    assert text.startswith("trainer.compile=true: torch.compile fails here (") and "\n" not in text
    assert text.endswith("set trainer.compile=false")


@pytest.mark.slow
@pytest.mark.parametrize("experiment", ["mnist_split", "class_split"])
def test_compiled_models_of_images_have_the_same_gradients(
    experiment: str, monkeypatch: pytest.MonkeyPatch, calls: list[int]
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    sizes = ["trainer=smoke", "trainer.compile=true", "trainer.train_limit=96", "trainer.test_limit=32"]
    task = create(configuration([f"experiment={experiment}", *sizes]))
    objective, found = task.objective().double(), []
    batch = task.batch(torch.arange(24))
    for number in range(2):
        with compiled(objective) if number else nullcontext():
            total(objective(batch[0].double(), *batch[1:])).backward()
        found.append({name: p.grad for name, p in objective.named_parameters()})
        objective.zero_grad()
    assert calls and objective.program is None
    for name, gradient in found[0].items():
        assert gradient is not None
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-7, atol=1e-10)


def test_passes_of_several_masks_are_not_compiled() -> None:
    given = ["experiment=class_split", "trainer.compile=true", "model.norm=batch"]
    with pytest.raises(UserError) as error:
        configuration(given)
    assert str(error.value) == "trainer.compile=True: must be false: batch norm needs one pass for each group"


@pytest.mark.slow
@pytest.mark.parametrize(
    "given",
    [["experiment=mnist_split", "losses.correlation=0.1"], ["experiment=class_split"]],
    ids=lambda given: given[0],
)
def test_compiled_losses_of_images_are_the_plain_ones(given: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    sizes = ["trainer=smoke", "trainer.compile=true", "trainer.train_limit=96", "trainer.test_limit=32"]
    task = create(configuration([*given, *sizes]))
    objective = task.objective()
    batch = task.batch(torch.arange(24))
    plain = objective(*batch)
    made: list[Callable[..., Any]] = []
    with compiled(objective, losses=True):
        programs = objective.programs
        assert programs is not None

        def noted(function: Callable[..., Any]) -> Callable[..., Any]:
            made.append(function)
            return programs(function)

        monkeypatch.setattr(objective, "programs", noted)
        for _ in range(2):
            objective.zero_grad()
            found = objective(*batch)
            total(found).backward()
    assert isinstance(objective, DecoderObjective)
    assert set(made) >= {objective.error, *objective.penalties.values(), *objective.certificates.values()}
    assert objective.programs is None and list(found) == list(plain)
    for term, (value, _) in plain.items():
        torch.testing.assert_close(found[term][0], value, rtol=1e-5, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "backend"), [("adam", "inductor"), ("adamw", "aot_eager"), ("sgd", "aot_eager")])
def test_a_compiled_update_is_the_plain_one_and_leaves_the_same_state(
    kind: str, backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a plain update, and before one, as in a run that is resumed; the rate changes every time."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    given = ["trainer=smoke", "trainer.train_limit=96", "trainer.test_limit=32", "model.hidden=[8]"]
    given += [f"trainer.optimizer={kind}", "trainer.weight_decay=0.01", "losses.certificates=[]"]
    given += ["trainer.momentum=0.9"] if kind == "sgd" else []
    ends: list[dict[str, torch.Tensor]] = []
    for compiles in (False, True):
        own = configuration(given)
        task = create(own)
        program = Single(task.objective(), own.trainer, partial(computing, "bfloat16", task.device), None)
        for number in range(6):
            with compiled_update(program, False, print) if compiles and 1 <= number <= 4 else nullcontext():
                program.set_rates([0.001 * (1 + number)])
                program.gradients([task.batch(torch.arange(64))])
                program.update()
        assert program.shadows is not None
        copies = dict(zip(map(str, range(99)), program.shadows._copies, strict=False))
        states = {f"{n} {k}": v for n, own in program.moments()[0].items() for k, v in own.items() if v is not None}
        ends.append({name: p.detach() for name, p in program.parameters.items()} | copies | states)
    assert ends[0].keys() == ends[1].keys() and len(ends[0]) > 15
    for name, tensor in ends[0].items():
        torch.testing.assert_close(ends[1][name], tensor, rtol=0.02, atol=2e-4, msg=name)
