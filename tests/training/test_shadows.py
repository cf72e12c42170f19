"""Training in copies of the weights, with layers joined in one function, against autocast of the plain modules."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from small_images import small
from torch import nn

from gradroute.models.perceptron import Perceptron
from gradroute.tasks.base import Task, create
from gradroute.training.compiling import compiled
from gradroute.training.devices import computing
from gradroute.training.gradients import Single
from gradroute.training.shadows import Shadows, convertible
from gradroute.training.stack import Stack

BFLOAT16 = partial(computing, "bfloat16", torch.device("cpu"))
Gradients = list[list[torch.Tensor]]


def gradients(program: Single | Stack, tasks: list[Task], updates: int = 3) -> Gradients:
    """Return all gradients of some updates, and the parameters after them."""
    found: Gradients = []
    for number in range(updates):
        program.set_rates([1e-3] * len(tasks))
        rows = torch.arange(number * 40, number * 40 + 40)
        program.gradients([task.batch(rows) for task in tasks])
        found.append([p.grad.clone() for p in program.parameters.values() if p.grad is not None])
        program.update()
    return [*found, [p.detach().clone() for p in program.parameters.values()]]


def single(*overrides: str) -> tuple[Single, list[Task]]:
    task = create(small(*overrides))
    return Single(task.objective(), task.config.trainer, BFLOAT16, None), [task]


def stack(*overrides: str) -> tuple[Stack, list[Task]]:
    tasks = [create(small(f"seed={seed}", *overrides)) for seed in (1, 2)]
    return Stack([task.objective() for task in tasks], [task.config.trainer for task in tasks], BFLOAT16), tasks


def plain(program: Single | Stack) -> Single | Stack:
    """Have a program compute by autocast and by the modules one after the other."""
    program.shadows = None
    return program


def modules(task: Task) -> list[Perceptron]:
    return [module for module in task.objective().modules() if isinstance(module, Perceptron)]


CASES = [(single, []), (single, ["trainer.accumulate=3", "losses.correlation=0"]), (single, ["model.decoders=2"]),
         (stack, [])]  # fmt: skip


@pytest.mark.parametrize(("made", "overrides"), CASES, ids=lambda value: getattr(value, "__name__", str(value)))
def test_gradients_in_copies_are_those_of_autocast_to_the_bit(
    made: Callable[..., Any], overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Perceptron, "fixed_shapes", True)  # the plain modules
    (ours, tasks), (reference, others) = made(*overrides), made(*overrides)
    weights = [p for p in ours.parameters.values() if made is single or p.dim() > 2]
    assert ours.shadows is not None and len(ours.shadows.parameters) == len(weights)
    for one, other in zip(gradients(ours, tasks), gradients(plain(reference), others), strict=True):
        assert len(one) == len(ours.parameters)
        for a, b in zip(one, other, strict=True):
            assert a.dtype == torch.float32 and torch.equal(a, b)


def test_joined_layers_agree_with_the_modules_within_bfloat16() -> None:
    (ours, tasks), (reference, others) = single(), single()
    joined = [module._joined(torch.zeros(2, 3), list(module)[-5:]) for module in modules(tasks[0])]
    assert joined == [False] * 4  # the masters are float32
    first, second = gradients(ours, tasks, 1)[0], gradients(plain(reference), others, 1)[0]
    for a, b in zip(first, second, strict=True):
        assert float((a - b).norm() / b.norm()) < 2**-7  # half a bit of bfloat16's eight, twice


def test_the_optimizer_keeps_what_bfloat16_would_round_away() -> None:
    program, tasks = single("trainer.lr=1e-6")
    before = [p.detach().clone() for p in program.parameters.values()]
    program.set_rates([1e-6])
    program.gradients([tasks[0].batch(torch.arange(40))])
    program.update()
    moved = [not torch.equal(p.detach(), old) for p, old in zip(program.parameters.values(), before, strict=True)]
    assert all(moved) and all(p.dtype == torch.float32 for p in program.parameters.values())


def test_a_compiled_model_computes_in_the_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    (ours, tasks), (reference, others) = single(), single()
    assert isinstance(ours, Single)
    with compiled(ours.objective):
        found = gradients(ours, tasks, 2)[0]
    for a, b in zip(found, gradients(plain(reference), others, 2)[0], strict=True):
        assert float((a - b).norm() / b.norm()) < 2**-7


def test_copies_are_made_once_an_update(monkeypatch: pytest.MonkeyPatch) -> None:
    made, refresh = list[int](), Shadows.refresh

    def counted(shadows: Shadows) -> None:
        made.append(1)
        refresh(shadows)

    monkeypatch.setattr(Shadows, "refresh", counted)
    gradients(*single(), updates=3)
    assert len(made) == 1 + 3


def test_weights_that_were_loaded_between_updates_are_used() -> None:
    (ours, tasks), (fresh, others) = single("seed=3"), single("seed=4")
    gradients(ours, tasks, 1)
    tasks[0].objective().load_state_dict(others[0].objective().state_dict())
    for a, b in zip(gradients(ours, tasks, 1)[0], gradients(fresh, others, 1)[0], strict=True):
        assert torch.equal(a, b)


def test_only_what_autocast_converts_has_a_copy() -> None:
    model = nn.ModuleDict({"words": nn.Embedding(5, 4), "head": nn.Linear(4, 5, bias=False), "norm": nn.LayerNorm(4),
                           "own": nn.Linear(4, 4), "short": nn.Linear(4, 4).half()})  # fmt: skip
    model["head"].weight = model["words"].weight
    assert convertible(model) == ["own.weight", "own.bias"]


def test_gradients_of_several_passes_add_up_and_frozen_parameters_have_none() -> None:
    layer, x = nn.Linear(3, 2), torch.ones(1, 3, dtype=torch.bfloat16)
    layer.bias.requires_grad_(False)
    shadows = Shadows(list(layer.parameters()), torch.bfloat16)
    for passes in (1, 3):
        layer.zero_grad()
        with shadows.used():
            assert layer.weight.dtype == torch.bfloat16
            for _ in range(passes):
                layer(x).sum().backward()
        assert layer.weight.grad is not None and layer.weight.grad.tolist() == [[passes] * 3] * 2
        assert layer.weight.dtype == layer.weight.grad.dtype == torch.float32 and layer.bias.grad is None


def network(bias: bool) -> tuple[Perceptron, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Linear(12, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 8, bias=bias)]
    return Perceptron(*layers).bfloat16(), torch.randn(64, 12).bfloat16().requires_grad_()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.skipif(not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="the processor has no bfloat16")
def test_one_function_has_the_values_and_gradients_of_the_layers(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for fixed in (False, True):
        monkeypatch.setattr(Perceptron, "fixed_shapes", fixed)
        model, x = network(bias)
        output = model(x)
        assert type(output.grad_fn).__name__.startswith("_Layers") != fixed
        output.float().square().sum().backward()
        found.append([output, x.grad, *(p.grad for p in model.parameters())])
    for a, b in zip(*found, strict=True):
        assert a is not None and b is not None and a.dtype == b.dtype == torch.bfloat16
        assert float((a - b).norm().detach() / b.norm().detach()) < 2**-7


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"])
def test_somebody_who_looks_at_a_layer_inside_sees_it(hook: str) -> None:
    model, x = network(True)
    seen = list[Any]()
    getattr(model[1], hook)(lambda *given: seen.append(given))
    model(x).sum().backward()
    assert len(seen) == 1
