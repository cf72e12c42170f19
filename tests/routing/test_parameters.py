"""Parameter routes: gradients against the point-by-point reference, and frozen slices to the bit."""

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn, optim

from gradroute.errors import UserError
from gradroute.routing import ParameterRegion, ParameterRouter, parse_units

GROUPS = ["a", "b", "c"]
SHAPES = {"0.weight": (4, 3), "0.bias": (4,), "2.weight": (2, 4), "2.bias": (2,)}
weights = st.sampled_from([0.0, 1.0, 0.5, -0.75, 2.0, 0.1])
Losses = dict[str | None, torch.Tensor]


def small_model(seed: int = 0) -> Any:  # an nn.Sequential, whose parts mypy takes for tensors
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def router_of(model: nn.Module, weight: float = 0.0, units: object = "0:2") -> ParameterRouter:
    """Group a reaches the given hidden units with `weight`; b and c are routed nowhere."""
    return ParameterRouter(model, {"r": ParameterRegion({"0.*": units})}, GROUPS, {"a": {"r": weight}})


def loss_of(model: nn.Module) -> torch.Tensor:
    loss: torch.Tensor = model(torch.randn(4, 3, dtype=torch.float64)).square().sum()
    return loss


def gradient_of(parameter: torch.Tensor) -> torch.Tensor:
    assert parameter.grad is not None
    return parameter.grad


@st.composite
def random_regions(draw: st.DrawFn) -> dict[str, ParameterRegion]:
    """One to three regions, which may overlap: each a parameter, or a slice of it along any axis."""
    regions = {}
    for number in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(sorted(SHAPES)))
        axis = draw(st.integers(-len(SHAPES[name]), len(SHAPES[name]) - 1))
        units = st.sets(st.integers(0, SHAPES[name][axis] - 1), min_size=1).map(sorted)
        regions[f"r{number}"] = ParameterRegion({name: draw(st.none() | units)}, axis)
    return regions


def reference(
    model: nn.Module, x: torch.Tensor, groups: Sequence[str | None], regions: Mapping[str, ParameterRegion], routes: Any
) -> list[torch.Tensor]:
    """One data point at a time, its gradient times its group's weight in each region, added up."""
    totals = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for point, group in zip(x, groups, strict=True):
        gradients = torch.autograd.grad(model(point).square().sum(), list(model.parameters()))
        for (name, _), total, gradient in zip(model.named_parameters(), totals, gradients, strict=True):
            for region_name, region in regions.items():
                units: Any = region.parameters.get(name, [])
                for unit in range(gradient.shape[region.axis]) if units is None else units:
                    gradient.select(region.axis, unit).mul_(routes.get(group, {}).get(region_name, 1))
            total += gradient
    return totals


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1000),
    batches=st.lists(st.lists(st.sampled_from([*GROUPS, None]), min_size=1, max_size=5), min_size=1, max_size=2),
    regions=random_regions(),
    data=st.data(),
)
def test_mixed_and_accumulated_batches_equal_the_point_by_point_reference(
    seed: int, batches: list[list[str | None]], regions: dict[str, ParameterRegion], data: st.DataObject
) -> None:
    rows = st.dictionaries(st.sampled_from(sorted(regions)), weights)
    routes = data.draw(st.dictionaries(st.sampled_from(GROUPS), rows))
    model = small_model(seed)
    router = ParameterRouter(model, regions, GROUPS, routes)
    x = torch.randn(sum(map(len, batches)), 3, dtype=torch.float64)
    for batch, points in zip(batches, x.split([len(batch) for batch in batches]), strict=True):
        errors = model(points).square().sum(1)
        router.backward({g: errors[[h == g for h in batch]].sum() for g in dict.fromkeys(batch)})
    theirs = reference(model, x, [group for batch in batches for group in batch], regions, routes)
    for parameter, gradient in zip(model.parameters(), theirs, strict=True):
        torch.testing.assert_close(gradient_of(parameter), gradient, rtol=1e-10, atol=1e-13)


def test_one_pass_for_each_distinct_assignment() -> None:
    model, calls = small_model(), list[int]()
    output = model(torch.randn(4, 3, dtype=torch.float64))
    output.register_hook(lambda _: calls.append(1))
    losses: Losses = dict(zip(["a", "b", "c", None], output.square().sum(1), strict=True))
    router_of(model, 0.5).backward(losses)
    assert len(calls) == 2  # a, and b, c and None together


def test_norms_are_of_the_weighted_gradient_and_joint_where_groups_share_a_pass() -> None:
    model = small_model()
    router = router_of(model, 0.5)
    losses: Losses = {group: loss_of(model) for group in ("a", "b", None)}
    parameters = list(model[0].parameters())
    alone = torch.autograd.grad(0.5 * losses["a"], parameters, retain_graph=True)
    joint = torch.autograd.grad(losses["b"] + losses[None], parameters, retain_graph=True)
    norms = [torch.cat([g[:2].flatten() for g in gradients]).norm().item() for gradients in (alone, joint)]
    router.measure = True
    router.backward(losses)
    expected = {("a", "r"): norms[0], ("b", "r"): norms[1], (None, "r"): norms[1]}
    assert router.last_norms == pytest.approx(expected, rel=1e-12)
    router.measure = False
    router.backward({"a": loss_of(model)})
    assert router.last_norms == {}


def test_a_group_that_is_not_trained_does_not_have_the_norm_of_those_that_share_its_weights() -> None:
    model, x = small_model(), torch.randn(4, 3, dtype=torch.float64)
    router = router_of(model, 0.5)
    router.measure, router.apart = True, {"c"}
    router.backward({"b": model(x).square().sum(), "c": model(x).sum() * 0.0})
    assert router.last_norms["b", "r"] > 0 and router.last_norms["c", "r"] == 0
    found = [gradient_of(parameter).clone() for parameter in model.parameters()]
    model.zero_grad()
    model(x).square().sum().backward()
    assert all(torch.equal(one, gradient_of(p)) for one, p in zip(found, model.parameters(), strict=True))


def test_what_lies_outside_the_model_gets_the_plain_gradient() -> None:
    model, certificate = small_model(), nn.Linear(4, 3).double()
    hidden = model[:2](torch.randn(4, 3, dtype=torch.float64))
    loss = certificate(hidden).square().sum()
    losses: Losses = {"a": loss + model[2](hidden).sum(), "b": loss, "c": loss, None: hidden.abs().sum()}
    expected = torch.autograd.grad(3 * loss, list(certificate.parameters()), retain_graph=True)
    router_of(model).backward(losses)
    for parameter, gradient in zip(certificate.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_gradient_that_is_not_finite_stays_out_of_a_region_of_weight_0() -> None:
    model = small_model()
    router_of(model).backward({"a": loss_of(model) * torch.inf, "b": loss_of(model)})
    gradient = gradient_of(model[0].weight)
    assert bool(gradient[:2].isfinite().all()) and not bool(gradient[2:].isfinite().any())


def test_the_parameters_are_left_without_hooks_also_after_an_exception() -> None:
    model = small_model()
    loss = loss_of(model)
    router = router_of(model, 0.5)
    router.backward({"a": loss})  # and the graph is gone
    before = [gradient_of(parameter).clone() for parameter in model.parameters()]
    with pytest.raises(RuntimeError, match="second time"):
        router.backward({"a": loss})
    assert not any(parameter._backward_hooks for parameter in model.parameters())
    assert all(torch.equal(gradient_of(p), g) for p, g in zip(model.parameters(), before, strict=True))


# Group a must touch neither the whole output layer nor two hidden units, b not an input column nor one of these units.
FROZEN = {
    "out": ParameterRegion({"2.*": None}),
    "rows": ParameterRegion({"0.*": "0:2"}),
    "column": ParameterRegion({"0.weight": [2]}, axis=1),
    "unit": ParameterRegion({"0.*": [1]}),
}
FREEZING = {"a": {"out": 0.0, "rows": 0.0}, "b": {"column": 0.0, "unit": 0.0}}
OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": partial(optim.SGD, lr=0.01, weight_decay=0.1),
    "momentum": partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1),
    "nesterov": partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1, nesterov=True, foreach=True),
    "fused sgd": partial(optim.SGD, lr=0.01, momentum=0.9, weight_decay=0.1, fused=True),
    "adam": partial(optim.Adam, lr=0.01, weight_decay=0.1, foreach=False),
    "adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1, foreach=True),
    "fused adamw": partial(optim.AdamW, lr=0.01, weight_decay=0.1, fused=True),
    "amsgrad": partial(optim.AdamW, lr=0.01, weight_decay=0.1, amsgrad=True, fused=True),
    "rmsprop": partial(optim.RMSprop, lr=0.01, momentum=0.9, weight_decay=0.1, centered=True),
}


def frozen_elements(groups: Sequence[str | None]) -> dict[str, torch.Tensor]:
    """By hand: where every group present has weight 0."""
    frozen = {name: torch.ones(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
    for group in groups:
        mine = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in SHAPES.items()}
        if group == "a":
            mine["2.weight"][:], mine["2.bias"][:], mine["0.weight"][:2], mine["0.bias"][:2] = True, True, True, True
        if group == "b":
            mine["0.weight"][:, 2], mine["0.weight"][1], mine["0.bias"][1] = True, True, True
        frozen = {name: frozen[name] & mine[name] for name in SHAPES}
    return frozen


def check_update(before: nn.Module, after: nn.Module, old: Any, new: Any, groups: Sequence[str | None]) -> None:
    """Parameters and state before and after: the same bits where frozen, others elsewhere."""
    frozen = frozen_elements(groups)
    for (name, p), q in zip(before.named_parameters(), after.parameters(), strict=True):
        still = frozen[name]
        assert torch.equal(p[still], q[still]) and bool((p != q)[~still].all())
        was, now = old.get(p, {}), new.get(q, {})
        if still.all():
            assert all(torch.equal(was.get(key, torch.zeros_like(now[key])), now[key]) for key in now)
            continue
        for key in ("momentum_buffer", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "square_avg", "grad_avg"):
            if key in now:
                past = was.get(key, torch.zeros_like(q))
                assert torch.equal(past[still], now[key][still])
                assert key == "max_exp_avg_sq" or bool((past != now[key])[~still].all())
        assert "step" not in now or now["step"] == was.get("step", 0) + 1
        assert all(value.shape == q.shape for key, value in now.items() if key != "step")


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_frozen_elements_keep_their_bits_and_the_others_move(kind: str) -> None:
    model = small_model()
    router = ParameterRouter(model, FROZEN, GROUPS, FREEZING)
    optimizer = OPTIMIZERS[kind](model.parameters())
    present: list[list[str | None]] = [["a"], ["b"], ["a", "b"], ["a", "a"], ["c"], ["a", None]]
    for step in range(50):
        groups = present[step % len(present)]
        optimizer.zero_grad()
        for group in groups:  # accumulated, so that a group may come twice
            router.backward({group: loss_of(model)})
        before, old_optimizer = copy.deepcopy((model, optimizer))
        with router.updating(optimizer):
            optimizer.step()
        check_update(before, model, old_optimizer.state, optimizer.state, groups)


def test_two_optimizers_each_have_their_own_update() -> None:
    model = small_model()
    router = ParameterRouter(model, FROZEN, GROUPS, FREEZING)
    first, second = (optim.AdamW(model[i].parameters(), lr=0.01, weight_decay=0.1) for i in (0, 2))
    for groups in (["b"], ["a"]):
        before = copy.deepcopy(model)
        router.backward({group: loss_of(model) for group in groups})
        for optimizer in (first, second):
            with router.updating(optimizer):
                optimizer.step()
            optimizer.zero_grad()
    assert torch.equal(before[2].weight, model[2].weight) and torch.equal(before[0].weight[:2], model[0].weight[:2])
    assert not torch.equal(before[0].weight[2:], model[0].weight[2:])


def test_a_tied_parameter_is_routed_by_either_name() -> None:
    model: Any = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    model[1].weight = model[0].weight
    regions = {"r": ParameterRegion({"1.weight": [2], "0.weight": [0]})}
    ParameterRouter(model, regions, ["a"], {"a": {"r": 0.5}}).backward(
        {"a": loss_of(model) * 0 + model[0].weight.sum()}
    )
    assert gradient_of(model[0].weight)[:, 0].tolist() == [0.5, 1, 0.5]


def test_the_block_restores_and_leaves_no_hook_after_an_exception() -> None:
    model = small_model()
    router, optimizer = router_of(model), optim.AdamW(model.parameters())
    before = copy.deepcopy(model)
    router.backward({"a": loss_of(model)})
    with pytest.raises(KeyError), router.updating(optimizer):
        optimizer.step()
        raise KeyError
    assert torch.equal(before[0].weight[:2], model[0].weight[:2])
    assert not optimizer._optimizer_step_pre_hooks


def test_an_update_needs_a_backward_and_an_optimizer_of_routed_parameters() -> None:
    model = small_model()
    router, optimizer = router_of(model), optim.SGD(model.parameters())
    with pytest.raises(UserError, match="no backward since the last update"), router.updating(optimizer):
        pass
    router.backward({"b": loss_of(model)})
    with pytest.raises(UserError, match="holds no routed parameter"), router.updating(optim.SGD(model[2].parameters())):
        pass
    with router.updating(optimizer):
        optimizer.step()
    with pytest.raises(UserError, match="no backward since the last update"), router.updating(optimizer):
        pass


class Factored(optim.SGD):
    """Makes state that is not of the parameter's shape, at its first step."""

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["row"] = torch.ones(7)


@pytest.mark.parametrize(
    ("optimizer_class", "message"),
    [
        (optim.Adafactor, "Adafactor cannot freeze a slice of '0.weight'"),
        (optim.Rprop, "Rprop cannot freeze a slice"),
        (optim.LBFGS, "LBFGS steps by a closure"),
        (optim.SGD, "SGD steps by a closure"),
    ],
)
def test_optimizers_that_cannot_be_split_are_refused_before_they_step(optimizer_class: Any, message: str) -> None:
    model = small_model()
    router, optimizer = router_of(model), optimizer_class(model.parameters())
    router.backward({"a": loss_of(model)})
    before = copy.deepcopy(model)
    with pytest.raises(UserError, match=message), router.updating(optimizer):
        optimizer.step(lambda: loss_of(model))
    assert all(torch.equal(p, q) for p, q in zip(before.parameters(), model.parameters(), strict=True))


def test_state_that_turns_out_not_to_split_is_refused_and_the_slice_kept() -> None:
    model = small_model()
    router, optimizer = router_of(model), Factored(model.parameters(), lr=0.1, weight_decay=0.1)
    router.backward({"a": loss_of(model)})
    before = model[0].weight.detach().clone()
    with pytest.raises(UserError, match="Factored cannot freeze a slice"), router.updating(optimizer):
        optimizer.step()
    assert torch.equal(before[:2], model[0].weight[:2])


def test_whole_regions_work_with_an_optimizer_that_does_not_split() -> None:
    model = small_model()
    router, optimizer = router_of(model, units=None), optim.Adafactor(model.parameters(), weight_decay=0.1)
    before = copy.deepcopy(model)
    router.backward({"a": loss_of(model)})
    with router.updating(optimizer):
        optimizer.step()
    assert torch.equal(before[0].weight, model[0].weight) and not torch.equal(before[2].weight, model[2].weight)


@pytest.mark.parametrize(
    ("patterns", "axis", "message"),
    [
        ({"0.wieght": None}, 0, "unknown parameter of region 'r': '0.wieght'; did you mean 0.weight"),
        ({"0.weight": "0:5"}, 0, "region 'r', parameter '0.weight': unit 4 is out of range; units go from 0 to 3"),
        ({"*.bias": [0, 3]}, 0, "parameter '2.bias': unit 3 is out of range; units go from 0 to 1"),
        ({"0.weight": [-1]}, 0, "out of range"),
        ({"0.weight": "2:2"}, 0, "'2:2': the region is empty"),
        ({"0.weight": []}, 0, "empty"),
        (
            {"0.weight": 992},
            0,
            "parameter '0.weight': 992: a bare number is not a range (YAML reads an unquoted 16:32 as 992)",
        ),
        ({"0.weight": "0:4:0"}, 0, "cannot be read as units"),
        ({"0.weight": [0.5]}, 0, "cannot be read as units"),
        ({"0.bias": "0:2"}, 1, "parameter '0.bias': shape (4,) has no axis 1 to slice"),
        ({}, 0, "region 'r' names no parameters"),
    ],
)
def test_bad_regions_are_refused(patterns: dict[str, object], axis: int, message: str) -> None:
    with pytest.raises(UserError) as error:
        ParameterRouter(small_model(), {"r": ParameterRegion(patterns, axis)}, GROUPS, {})
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_parameter_that_does_not_train_is_refused() -> None:
    model = small_model()
    model[0].bias.requires_grad_(False)
    with pytest.raises(UserError, match=r"region 'r', parameter '0.bias': it has requires_grad=False"):
        router_of(model)


@pytest.mark.parametrize(
    ("routes", "message"),
    [
        ({"d": {"r": 0.0}}, "unknown group in routes: 'd'; "),
        ({"a": {"rr": 0.0}}, "unknown region in routes.a: 'rr'; did you mean r?"),
        ({"a": {"r": float("nan")}}, "routes.a.r=nan: must be a finite number"),
        ({"a": {"r": float("-inf")}}, "routes.a.r=-inf: must be a finite number"),
        ({"a": {"r": "0"}}, "routes.a.r=0: must be a finite number"),
    ],
)
def test_bad_routes_are_refused(routes: Any, message: str) -> None:
    with pytest.raises(UserError) as error:
        ParameterRouter(small_model(), {"r": ParameterRegion({"0.*": None})}, GROUPS, routes)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("losses", "message"),
    [
        ({"d": torch.ones((), requires_grad=True)}, "unknown group in losses: 'd'"),
        ({"a": torch.ones(2, requires_grad=True)}, "loss of 'a' has shape (2,)"),
        ({None: torch.ones(())}, "loss of None has shape () and requires_grad=False"),
        ({}, "got no losses"),
    ],
)
def test_bad_losses_are_refused(losses: Losses, message: str) -> None:
    with pytest.raises(UserError) as error:
        router_of(small_model()).backward(losses)
    assert message in str(error.value)


@given(start=st.integers(0, 20), length=st.integers(1, 20), step=st.integers(1, 4))
def test_slices_are_those_of_a_list(start: int, length: int, step: int) -> None:
    stop = start + length
    units = tuple(range(stop))[start:stop:step]
    assert parse_units(f"{start}:{stop}:{step}", stop, "u") == units == parse_units(units, stop, "u")
    assert parse_units(None, stop, "u") == tuple(range(stop))


def test_a_penalty_that_does_not_lead_to_a_region_does_not_unfreeze_it() -> None:
    model = small_model()
    router = router_of(model, 0.0)
    optimizer = optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
    for penalised, still in ((model[2], True), (model[0], False)):
        before = model[0].weight.detach().clone()
        optimizer.zero_grad()
        router.backward({"a": loss_of(model), None: penalised.weight.square().sum()})
        with router.updating(optimizer):
            optimizer.step()
        assert torch.equal(model[0].weight[:2], before[:2]) == still


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model()
    router, optimizer = router_of(model), optim.SGD(model.parameters(), 0.1)
    router.backward({"a": loss_of(model)})
    for name, value in (("is_initialized", True), ("get_world_size", 2)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    with pytest.raises(UserError, match="one process only"), router.updating(optimizer):
        pass
