"""Models that are copied, pickled or saved while a route, an observer or an ablation is on them."""

import copy
import io
import pickle
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from torch import nn

from gradroute import Region, Router, UserError
from gradroute.routing import ablation
from gradroute.routing.sites import observed

X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


def pickled(model: nn.Module) -> nn.Module:
    made: nn.Module = pickle.loads(pickle.dumps(model))
    return made


def saved(model: nn.Module) -> nn.Module:
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    made: nn.Module = torch.load(buffer, weights_only=False)
    return made


def made() -> tuple[nn.Sequential, Router]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    return model, Router(model, {"left": Region("0", "0:3")}, ["a"], {"a": {"left": 0.0}}, X[:1])


def first_rows(model: nn.Module) -> torch.Tensor:
    """Whether each row of the first layer gets a gradient."""
    model.zero_grad()
    model(X).square().sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    return (gradient != 0).any(1)


COPIES = pytest.mark.parametrize("copied", [copy.deepcopy, pickled, saved])
Copy = Callable[[nn.Module], nn.Module]


@COPIES
@pytest.mark.parametrize("block", ["route", "attached"])
def test_a_copy_is_not_routed_and_the_model_still_is(copied: Copy, block: str) -> None:
    model, router = made()
    with router.attached() if block == "attached" else router.route("a"):
        model(X)
        twin = copied(model)
        assert bool(first_rows(twin).all())
        with router.route("a"):
            assert first_rows(model).tolist() == [False] * 3 + [True] * 3
    assert bool(first_rows(twin).all())
    assert torch.equal(twin(X), model(X))


@pytest.mark.slow
def test_a_pickled_copy_needs_nothing_of_this_package(tmp_path: Path) -> None:
    model, router = made()
    with router.attached():
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(model))
    code = "import pickle, sys, torch; m = pickle.load(open('model.pkl', 'rb')); m(torch.zeros(1, 4)); " \
           "print('gradroute' in sys.modules)"  # fmt: skip
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert result.stdout == "False\n"


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_router_with_its_model_routes_when_it_is_entered(copied: Callable[..., Router]) -> None:
    model, router = made()
    with router.attached(), router.route("a"):
        model(X)
        twin = copied(router)
        assert bool(first_rows(twin.model).all())
    with twin.route("a"):
        assert first_rows(twin.model).tolist() == [False] * 3 + [True] * 3
    assert not any(module._forward_hooks for module in model.modules())


@COPIES
def test_a_copy_is_not_observed(copied: Copy) -> None:
    model, router = made()
    with observed(model, router.sites) as seen:
        twin = copied(model)
        twin(X)
        assert not seen
        model(X)
    assert list(seen) == ["0"]


def ablated() -> tuple[nn.Module, AbstractContextManager[nn.Module]]:
    model, router = made()
    return model, ablation.zero("left", router).applied(model)


def test_a_deep_copy_of_an_ablated_model_stays_ablated() -> None:
    model, block = ablated()
    plain = model(X)
    with block:
        expected = model(X)
        twin = copy.deepcopy(model)
    assert torch.equal(twin(X), expected) and torch.equal(copy.deepcopy(twin)(X), expected)
    assert torch.equal(model(X), plain) and not torch.equal(plain, expected)


@pytest.mark.parametrize("copied", [pickled, saved])
def test_saving_an_ablated_model_is_refused_with_what_to_do(copied: Copy) -> None:
    model, block = ablated()
    with block, pytest.raises(UserError, match=r"outside of it, or save model\.state_dict\(\)"):
        copied(model)
    copied(model)
