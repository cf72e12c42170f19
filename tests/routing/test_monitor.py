"""The monitor and the ledger against sums that are made number by number, and what they cost with many regions."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gradroute import Monitor, ParameterRegion, ParameterRouter, Region, Router
from gradroute.routing.monitor import SUMS
from gradroute.training.ledger import ALL, SHARED, Ledger

WIDTH, BATCH, TOKENS, GROUPS = 6, 5, 3, ["a", "b"]
UNITS = st.lists(st.integers(0, WIDTH - 1), min_size=1, max_size=WIDTH, unique=True)
SITES = st.sampled_from([("0",), ("2",), ("0", "2"), ("2", "0")])


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH)).double()


def memberships(kind: str) -> torch.Tensor:
    """Return random memberships, some of them in no group."""
    if kind == "mixed":
        return torch.rand(BATCH, len(GROUPS)).double() / 2
    return torch.randint(-1, len(GROUPS), (BATCH, TOKENS) if kind == "token" else (BATCH,))


def shares(membership: torch.Tensor) -> torch.Tensor:
    """Return the share of every group, and of none, at each position: `(batch, tokens, groups + 1)`."""
    if membership.is_floating_point():
        found = torch.cat([membership, 1 - membership.sum(-1, keepdim=True)], -1)
    else:
        found = nn.functional.one_hot(membership % 3, 3).double()
    return found if found.dim() == 3 else found[:, None].expand(-1, TOKENS, -1)


def added(squares: dict[str, torch.Tensor], region: Region, share: torch.Tensor) -> float:
    """Return the sum over a region's sites and units, and over all positions, one number after the other."""
    return math.fsum(
        float(share[row, token] * squares[site.name][row, token, unit])
        for site in region.sites for unit in region.units for row in range(BATCH) for token in range(TOKENS)
    )  # fmt: skip


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(UNITS, SITES), min_size=1, max_size=5), st.sampled_from(["point", "token", "mixed"]))
def test_norms_are_those_of_sums_made_number_by_number(specs: list[tuple[list[int], Any]], kind: str) -> None:
    model, x, membership = made(), torch.randn(BATCH, TOKENS, 4).double(), memberships(kind)
    regions = {f"r{i}": Region(sites, units) for i, (units, sites) in enumerate(specs)}
    router = Router(model, regions, GROUPS, {"a": {"r0": 0.0}, "b": {"r0": 0.5}}, x[:1])
    monitor = Monitor(router.regions, router.groups)
    with router.route(membership, monitor) as activations:
        loss = model(x).square().sum()
    seen = dict(activations)
    for tensor in seen.values():
        tensor.retain_grad()
    penalty = {site: torch.zeros_like(tensor) for site, tensor in seen.items()}
    if "0" in seen:  # a penalty of the first site's activations, whose gradients bypass the mask
        penalty["0"], loss = seen["0"].detach().sign(), loss + seen["0"].abs().sum()
    loss.backward()
    squares = {
        "activation": {site: tensor.detach().square() for site, tensor in seen.items()},
        "routed": {
            site: (tensor.grad - penalty[site]).square() for site, tensor in seen.items() if tensor.grad is not None
        },
        "unrouted": {site: gradient.square() for site, gradient in penalty.items()},
    }
    every, found = shares(membership), {(n.group, n.region): n for n in monitor.norms()}
    assert {name for _, name in found} == set(regions)
    for (group, name), n in found.items():
        share, region = every[..., [*GROUPS, "default"].index(group)], router.regions[name]
        assert n.points == pytest.approx(float(share.sum() if kind == "token" else share[:, 0].sum()))
        sums = {what: added(own, region, share) for what, own in squares.items()}
        assert n.activation == pytest.approx(math.sqrt(sums["activation"] / n.points))
        assert n.routed == pytest.approx(math.sqrt(sums["routed"]), abs=1e-9)
        assert n.unrouted == pytest.approx(math.sqrt(sums["unrouted"]), abs=1e-9)


class Calls(TorchDispatchMode):
    """Count the operations inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))


def measured(count: int) -> int:
    """Return the number of operations of a measured update with `count` regions."""
    model, x = nn.Sequential(nn.Linear(4, 120), nn.Tanh(), nn.Linear(120, 2)), torch.randn(BATCH, 4)
    size = 120 // count
    regions = {f"r{i}": Region("1", f"{i * size}:{(i + 1) * size}") for i in range(count)}
    router = Router(model, regions, GROUPS, {"a": {"r0": 0.0}, "b": {"r1": 0.0}}, x[:1])
    ledger = Ledger(router, ParameterRouter(model, {}, GROUPS, {}), torch.tensor([0, 1]), window=9, every=1)
    membership = torch.tensor([0, 1, 0, 1, 1])
    for step in range(2):
        with Calls() as calls:
            router.at_step(step)
            with router.route(membership, ledger.begin(step, membership)):
                loss = model(x).sum()
            loss.backward()
    return int(calls.count)


def test_a_measured_update_takes_as_many_operations_with_many_regions_as_with_two() -> None:
    assert measured(2) == measured(10) == measured(60) > 20


def test_what_moved_is_what_moved() -> None:
    model, x = made(), torch.randn(BATCH, 4).double()
    router = Router(model, {"low": Region("0", "0:2"), "odd": Region("0", [1, 3])}, GROUPS, {}, x[:1])
    columns = ParameterRegion({"2.weight": [0, 5]}, axis=1)
    parameters = ParameterRouter(model, {"columns": columns, "bias": ParameterRegion({"2.bias": None})}, GROUPS, {})
    ledger = Ledger(router, parameters, torch.tensor([0]), window=9, every=1)
    ledger.begin(0, torch.tensor([0]))
    before = [p.detach().clone() for p in model.parameters()]
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p))
    ledger.close(1)
    first, first_bias, last, last_bias = (p.detach() - old for p, old in zip(model.parameters(), before, strict=True))
    right = {
        "low": [first[:2], first_bias[:2]], "odd": [first[[1, 3]], first_bias[[1, 3]]],
        "columns": [last[:, [0, 5]]], "bias": [last_bias],
        SHARED: [first[[4, 5]], first_bias[[4, 5]], first[2], first_bias[2], last[:, 1:5]],
    }  # fmt: skip
    moved = {row["region"]: row["moved"] for row in ledger.rows if row["group"] == ALL}
    assert moved == {
        name: pytest.approx(float(torch.cat([p.flatten() for p in own]).norm())) for name, own in right.items()
    }


def test_a_restored_monitor_goes_on() -> None:
    model, x, membership = made(), torch.randn(BATCH, TOKENS, 4).double(), memberships("token")
    regions = {"low": Region("0", "0:2"), "both": Region(("0", "2"), [1, 3, 4])}
    router = Router(model, regions, GROUPS, {"a": {"low": 0.0}}, x[:1])
    whole, first, restored = (Monitor(router.regions, router.groups) for _ in range(3))

    def measure(monitor: Monitor) -> None:
        with router.route(membership, monitor):
            loss = model(x).square().sum()
        loss.backward()

    measure(first)
    state = first.state_dict()
    measure(first)  # the state is a copy
    assert set(state["sums"]) == {(what, name) for what in SUMS for name in regions}
    assert state["passes"] == {"low": 1, "both": 1}
    restored.load_state_dict(state)
    measure(restored)
    for _ in range(2):
        measure(whole)
    assert list(restored.norms()) == list(whole.norms()) == list(first.norms())
