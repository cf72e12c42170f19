"""Weight 0 gives a gradient of exactly 0, whatever arrives; other weights let what is not finite through."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from gradroute import Region, Route, Router, mask_gradient

X = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
ARRIVING = pytest.mark.parametrize("arriving", [float("inf"), -float("inf"), float("nan")])


def routed(weight: Any, membership: Any, arriving: float, step: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """The gradients of the first layer's rows inside and outside of the region, for an infinite gradient or NaN."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Identity())
    router = Router(model, {"left": Region("0", "0:3")}, ["a", "b"], {"a": {"left": weight}}, X[:1])
    router.at_step(step)
    with router.route(membership):
        (model(X) * arriving).sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None
    return gradient[:3], gradient[3:]


SHARED = torch.tensor([[1.0, 0.0]] * 3)
HALVES = torch.tensor([[0.5, 0.5]] * 3)


@ARRIVING
@pytest.mark.parametrize(
    ("weight", "membership"),
    [(0.0, "a"), (0.0, torch.zeros(3, dtype=torch.long)), (-0.0, "a"), (0.0, SHARED), (-1.0, HALVES),
     (Route(1.0, forward=0.0), "a"), (Route(0.5, forward=0.0), SHARED), (Route(-1.0, ramp=2), "a")],
)  # fmt: skip
def test_weight_0_gives_exactly_0(weight: Any, membership: Any, arriving: float) -> None:
    """Also half way down a ramp from 1 to -1."""
    inside, outside = routed(weight, membership, arriving, step=1)
    assert bool((inside == 0).all()) and not bool(outside.isfinite().any())


@ARRIVING
def test_other_weights_let_it_through(arriving: float) -> None:
    for weight, membership in ((0.5, "a"), (0.0, "b"), (0.0, -1)):
        inside, outside = routed(weight, membership, arriving)
        assert not bool(inside.isfinite().any()) and not bool(outside.isfinite().any())


@ARRIVING
def test_weight_0_gives_exactly_0_in_a_stack(arriving: float) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.Identity())
    router = Router(model, {"left": Region("0", "0:3")}, ["a"], {"a": {"left": 0.5}}, X[:1])
    weight, forward = router.tables()["0"]
    weights = torch.stack([weight, weight.clone()])
    weights[1, 0, :3] = 0

    def loss(parameters: dict[str, torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
        with router.using({"0": (weight, forward)}), router.route("a"):
            total: torch.Tensor = functional_call(model, parameters, (X,)).mul(arriving).sum()
        return total

    parameters = {name: torch.stack([p.detach()] * 2) for name, p in model.named_parameters()}
    first, second = vmap(grad(loss))(parameters, weights)["0.weight"]
    assert not bool(first.isfinite().any())
    assert bool((second[:3] == 0).all()) and not bool(second[3:].isfinite().any())


def test_a_second_derivative_goes_through_the_mask() -> None:
    x = torch.tensor([0.5, 0.7, 0.9], dtype=torch.float64, requires_grad=True)
    mask = torch.tensor([0.0, 1.0, -0.5], dtype=torch.float64)
    (first,) = torch.autograd.grad(mask_gradient(x, mask).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    torch.testing.assert_close(first, mask * 3 * x.detach() ** 2)
    torch.testing.assert_close(second, mask * mask * 6 * x.detach())
