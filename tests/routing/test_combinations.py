"""Routing under autocast, compile, accumulation, checkpointing, vmap and two processes; and what it refuses."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from forked import fork
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import CheckpointError, checkpoint

from gradroute import Monitor, Region, Route, Router, UserError

REGIONS = {"left": Region("encode", "0:3"), "right": Region("encode", "3:6")}
ROUTES = {"a": {"right": 0.0}, "b": {"left": 0.0, "right": -0.5}}
X = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
GROUP = torch.tensor([0, 1, 0, -1, 1, 1, 0, -1])


class Net(nn.Module):
    """Two layers, the first optionally checkpointed."""

    def __init__(self, reentrant: bool | None = None) -> None:
        super().__init__()
        self.encode, self.decode, self.reentrant = nn.Linear(4, 6), nn.Linear(6, 4), reentrant

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.reentrant is None:
            z = self.encode(x)
        else:
            z = checkpoint(lambda v: self.encode(v).tanh().atanh(), x, use_reentrant=self.reentrant)
        y: torch.Tensor = self.decode(z.tanh())
        return y


def net(seed: int = 0, **options: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**options)


def router_of(model: nn.Module) -> Router:
    return Router(model, REGIONS, ["a", "b"], ROUTES, X[:1])


def gradients(
    model: nn.Module, call: Callable[..., Any] | None = None, rows: slice = slice(None)
) -> list[torch.Tensor]:
    """Gradients of the routed model's loss, summed over data points, called as `call`."""
    router = router_of(model)
    with router.route(GROUP[rows]):
        loss = (call or model)(X[rows]).square().sum()
        loss.backward()
    return [p.grad for p in model.parameters() if p.grad is not None]


def assert_same(ours: list[torch.Tensor], theirs: list[torch.Tensor], rtol: float = 1e-5) -> None:
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=rtol, atol=1e-6)


def test_autocast_leaves_forward_bits_and_exact_zeros() -> None:
    model = net()
    router = Router(model, REGIONS, ["a"], {"a": {"right": 0.0}}, X[:1])
    with torch.autocast("cpu", torch.bfloat16):
        plain = model(X)
        with router.route("a"):
            routed = model(X)
    assert torch.equal(plain, routed) and routed.dtype == torch.bfloat16
    routed.float().square().sum().backward()
    rows = model.encode.weight.grad
    assert rows is not None and bool((rows[3:] == 0).all()) and bool((rows[:3] != 0).all())


def test_a_compiled_model_is_routed_inside_attached() -> None:
    """In one graph where torch can compile what a context holds; older versions break the graph at each site."""
    whole = hasattr(torch._dynamo.variables.misc, "ContextVarVariable")
    expected, model = gradients(net()), net()
    router = router_of(model)
    with router.attached():
        compiled = torch.compile(model, backend="aot_eager", fullgraph=whole)
        for order in (torch.arange(8), torch.arange(8).flip(0)):  # a second membership, without compiling again
            model.zero_grad()
            with router.route(GROUP[order]), torch._dynamo.config.patch(error_on_recompile=bool(order[0])):
                compiled(X[order]).square().sum().backward()
            assert_same([p.grad for p in model.parameters() if p.grad is not None], expected)


def test_a_model_compiled_without_its_hooks_is_refused() -> None:
    model = net()
    router = router_of(model)
    compiled = torch.compile(model, backend="eager")
    compiled(X)
    with pytest.raises(UserError, match=r"site 'encode' was not reached.*attached\(\)"), router.route(GROUP):
        compiled(X)


def test_accumulated_batches_add_up() -> None:
    model = net()
    gradients(model, rows=slice(0, 3))
    assert_same(gradients(model, rows=slice(3, 8)), gradients(net()))


def test_checkpointed_activations_are_routed_when_backward_comes_inside() -> None:
    assert_same(gradients(net(reentrant=False)), gradients(net()), rtol=1e-4)


def test_checkpointing_that_would_lose_the_route_raises() -> None:
    model = net(reentrant=False)
    with router_of(model).route(GROUP):
        loss = model(X).square().sum()
    with pytest.raises(CheckpointError):
        loss.backward()
    model = net(reentrant=True)
    with pytest.raises(UserError, match="use_reentrant=False"), router_of(model).route(GROUP):
        model(X.clone().requires_grad_())


@pytest.mark.slow
def test_a_monitor_inside_a_compiled_model_or_vmap_measures_or_raises() -> None:
    model = net()
    router = router_of(model)
    plain, compiled = (Monitor(router.regions, router.groups) for _ in range(2))
    with router.route(GROUP, plain):
        model(X).square().sum().backward()
    with router.attached():
        fast = torch.compile(model, backend="aot_eager")
        with router.route(GROUP, compiled):
            fast(X).square().sum().backward()
    for one, other in zip(plain.norms(), compiled.norms(), strict=True):
        assert (one.group, one.region) == (other.group, other.region)
        assert one.routed == pytest.approx(other.routed, rel=1e-5) and one.unrouted == other.unrouted == 0


def test_stacked_models_under_vmap_equal_single_ones() -> None:
    models = [net(seed) for seed in range(3)]
    params, _ = stack_module_state(list(models))
    base = net()
    router = router_of(base)

    def loss(one: dict[str, torch.Tensor], x: torch.Tensor, group: torch.Tensor) -> torch.Tensor:
        with router.route(group):
            total: torch.Tensor = functional_call(base, one, (x,)).square().sum()
        return total

    orders = torch.stack([torch.arange(8), torch.arange(8).flip(0), torch.arange(8).roll(3)])
    stacked = vmap(grad(loss))(params, X[orders], GROUP[orders])
    for number, model in enumerate(models):
        assert_same([g[number] for g in stacked.values()], gradients(model))


def _process(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    model = net()
    gradients(model, DistributedDataParallel(model), slice(rank * 4, rank * 4 + 4))
    torch.save([p.grad for p in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)  # DistributedDataParallel keeps gloo's threads, and one that ends after Python's own end aborts


@pytest.mark.slow
def test_two_processes_have_the_gradients_of_one(tmp_path: Path) -> None:
    processes = [fork(_process, rank, str(tmp_path)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    one = [g / 2 for g in gradients(net())]  # DDP averages over processes
    for rank in range(2):
        assert_same(torch.load(tmp_path / f"{rank}.pt"), one)


def test_attaching_twice_and_nesting_leave_the_users_hooks_alone() -> None:
    model, calls = net(), list[str]()
    model.encode.register_forward_hook(lambda *_: calls.append("first"))
    router = router_of(model)
    kept = dict(model.encode._forward_hooks)
    with router.attached(), router.attached(), router.route(GROUP), router.route(GROUP):
        model.encode.register_forward_hook(lambda *_: calls.append("second"))
        twice = model(X)
    torch.autograd.backward(twice.square().sum())
    assert next(iter(model.encode._forward_hooks)) in kept and len(model.encode._forward_hooks) == 2
    squared = {group: {r: w**2 for r, w in row.items()} for group, row in ROUTES.items()}
    other = net()
    with Router(other, REGIONS, ["a", "b"], squared, X[:1]).route(GROUP):
        other(X).square().sum().backward()
    grads = [[p.grad for p in m.parameters() if p.grad is not None] for m in (model, other)]
    assert_same(grads[0], grads[1])
    calls.clear()
    model(X)
    assert calls == ["first", "second"]


def test_the_default_route_is_the_plain_gradient() -> None:
    model, plain = net(), net()
    with router_of(model).route(torch.full((8,), -1)):
        model(X).square().sum().backward()
    plain(X).square().sum().backward()
    assert all(torch.equal(p.grad, q.grad) for p, q in zip(model.parameters(), plain.parameters(), strict=True))  # type: ignore[arg-type]


def test_a_schedule_warms_up_ramps_and_ends() -> None:
    route = Route(0.0, start=2, ramp=4, stop=10)
    assert [route.at(step)[0] for step in (0, 1, 2, 3, 5, 6, 9, 10)] == [1, 1, 1, 0.75, 0.25, 0, 0, 1]
    router = Router(net(), REGIONS, ["a"], {"a": {"left": route, "right": 0.5}}, X[:1])
    assert router.masks["encode"][0].tolist() == [1, 1, 1, 0.5, 0.5, 0.5]
    router.at_step(7)
    assert router.masks["encode"][0].tolist() == [0, 0, 0, 0.5, 0.5, 0.5] and router.weight("a", "left") == 0


def test_forward_masking_hides_units_from_one_group() -> None:
    model = net()
    routes = {"a": {"right": Route(1.0, forward=0.0)}}
    router = Router(model, REGIONS, ["a", "b"], routes, X[:1])
    with router.route(GROUP) as activations:
        output = model(X)
    z = activations["encode"].detach().clone()
    z[GROUP == 0, 3:] = 0
    torch.testing.assert_close(output, model.decode(z.tanh()))
    output[GROUP == 0].square().sum().backward()
    rows = model.encode.weight.grad
    assert rows is not None and bool((rows[3:] == 0).all()) and bool((rows[:3] != 0).all())


class Several(nn.Module):
    """A module that returns a tuple, a convolution, and a layer that is only sometimes used."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.lstm, self.idle = nn.Conv1d(4, 6, 1), nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 5)
        self.act = nn.ReLU(inplace=True)
        self.use = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.lstm(self.conv(x).transpose(1, 2))
        y = self.act(y) if self.act.inplace is False or not self.use else y
        z: torch.Tensor = self.idle(y) if self.use else y
        return z


def test_channels_and_outputs_of_tuples_are_sites() -> None:
    model, x = Several(), torch.randn(3, 4, 7)
    regions = {"channels": Region("conv", [0, 5], axis=1), "hidden": Region("lstm", "1:3", output=0)}
    routes = {"g": {"channels": 0.0, "hidden": 0.0}}
    router = Router(model, regions, ["g"], routes, x[:1])
    assert set(router.masks) == {"conv@1", "lstm[0]"} and router.found["conv@1"].producer == "conv"
    with router.route(torch.tensor([0, 0, 0])) as activations:
        output = model(x)
    (gradient,) = torch.autograd.grad(output.sum(), activations["lstm[0]"], retain_graph=True)
    assert bool((gradient[..., 1:3] == 0).all()) and bool((gradient[..., [0, 3, 4]] != 0).all())
    output.sum().backward()
    rows = model.conv.weight.grad
    assert rows is not None and bool((rows[[0, 5]] == 0).all()) and bool((rows[1:5] != 0).all())
    assert router.regions["channels"].select(activations).shape == (3, 7, 2)


def test_heads_globs_and_bool_masks_are_units() -> None:
    model = nn.Sequential(*(nn.Linear(12, 12) for _ in range(3)))
    for layer in model:
        layer.num_heads = 6  # type: ignore[assignment]
    x = torch.zeros(1, 12)
    units = {
        "heads": ({"heads": [1], "of": 4}, (3, 4, 5)),
        "stated by the module": ({"heads": "2:4"}, (4, 5, 6, 7)),
        "fused": ({"heads": [0], "of": 2, "parts": 3}, (0, 1, 4, 5, 8, 9)),
        "mask": (torch.arange(12) % 6 == 1, (1, 7)),
        "step": ("0:12:5", (0, 5, 10)),
        "all": (None, tuple(range(12))),
    }
    for name, (spec, expected) in units.items():
        region = Router(model, {name: Region("[01]", spec)}, ["g"], {}, x).regions[name]
        assert region.units == expected and region.site == ("0", "1") and region.width == 2 * len(expected)


REFUSED = [
    (Region("conf"), "unknown site of region 'r': 'conf'; did you mean conv?"),
    (Region("blocks.*.mlp"), "unknown site of region 'r': 'blocks.*.mlp'"),
    (Region(()), "names no site"),
    (Region("lstm"), "the module returns 2 values; give output=0 to 1"),
    (Region("conv", output=1), "the module returns one Tensor; leave output= out"),
    (Region("conv", axis=4), "of shape (1, 6, 7) has no axis 4"),
    (Region("conv", [6], axis=1), "unit 6 is out of range; units go from 0 to 5"),
    (Region(("conv", "idle"), axis=1), "has sites of different widths: {'conv@1': 6, 'idle@1': 7}"),
]


@pytest.mark.parametrize(("region", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_bad_sites_are_refused(region: Region, message: str) -> None:
    with pytest.raises(UserError) as error:
        Router(Several(), {"r": region}, ["g"], {}, torch.zeros(1, 4, 7))
    assert message in str(error.value) and "\n" not in str(error.value)


def test_passes_that_would_not_be_routed_are_refused() -> None:
    model, x = Several(), torch.randn(2, 4, 7)
    router = Router(model, {"r": Region("idle", [0])}, ["g"], {"g": {"r": 0.0}}, x[:1])
    with pytest.raises(UserError, match="gradients are disabled"), torch.no_grad(), router.route("g"):
        model(x)
    with pytest.raises(UserError, match="gradients are disabled"), torch.inference_mode(), router.route("g"):
        model(x)
    with pytest.raises(UserError, match="disabled inside route"), router.route("g"), torch.no_grad():
        model(x)
    model.use = False
    with pytest.raises(UserError, match="'idle' was not reached"), router.route("g"):
        model(x)
    model.use = True
    model.requires_grad_(False)
    with pytest.raises(UserError, match="requires no gradient"), router.route("g"):
        model(x)
    assert not any(module._forward_hooks for module in model.modules())


def test_changing_a_masked_activation_in_place_where_the_example_did_not_is_refused() -> None:
    """`test_in_place.py` has what the example shows."""
    activate = nn.ReLU()
    model = nn.Sequential(nn.Linear(4, 6), activate)
    router = Router(model, {"r": Region("0", [0])}, ["g"], {"g": {"r": 0.0}}, X[:1])
    activate.inplace = True
    with pytest.raises(UserError, match=r"in place.*module\.inplace = False"), router.route("g"):
        model(X)


@pytest.mark.parametrize(
    ("membership", "message"),
    [
        (torch.full((8,), 2), "values out of range"),
        (torch.full((8,), -2), "values out of range"),
        (torch.full((8, 2), torch.nan), "values out of range"),
        (torch.zeros(8, 3), "shape (8, 3): give"),
        (torch.zeros(8, dtype=torch.bool), "torch.bool"),
        (torch.zeros(7, dtype=torch.long), "a membership of shape (7,) does not fit"),
        (torch.zeros(8, 4, dtype=torch.long), "(batch, tokens) for a site with tokens"),
        ("c", "unknown group 'c'"),
    ],
)  # fmt: skip
def test_bad_memberships_are_refused(membership: Any, message: str) -> None:
    model = net()
    with pytest.raises(UserError) as error, router_of(model).route(membership):
        model(X)
    assert message in str(error.value)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "0", {"weight": 1, "ramp": -1}, {"wait": 1}])
def test_bad_weights_are_refused(weight: Any) -> None:
    with pytest.raises(UserError, match=r"routes\.a\.left"):
        Router(net(), REGIONS, ["a"], {"a": {"left": weight}}, X[:1])


def test_the_monitor_tells_routed_from_unrouted_gradients() -> None:
    model, router = net(), router_of(net())
    router = router_of(model)
    monitor = Monitor(router.regions, router.groups)
    with router.route(GROUP, monitor) as activations:
        output = model(X)
    z = activations["encode"].detach().requires_grad_()
    (task,) = torch.autograd.grad(model.decode(z.tanh()).square().sum(), z)
    penalty = torch.zeros_like(z)
    penalty[:, 3:] = 0.1 * z.detach()[:, 3:].sign()
    (output.square().sum() + 0.1 * activations["encode"][:, 3:].abs().sum()).backward()
    norms = {(n.group, n.region): n for n in monitor.norms()}
    assert {key: n.points for key, n in norms.items()}[("default", "left")] == 2 and len(norms) == 6
    for (group, region), n in norms.items():
        rows = {"a": GROUP == 0, "b": GROUP == 1, "default": GROUP == -1}[group]
        units = slice(0, 3) if region == "left" else slice(3, 6)
        weight = ROUTES.get(group, {}).get(region, 1.0)
        assert n.routed == pytest.approx(abs(weight) * float(task[rows, units].norm()), rel=1e-5)
        assert n.unrouted == pytest.approx(float(penalty[rows, units].norm()), abs=1e-5)
        rms = float(z.detach()[rows, units].square().sum(1).mean().sqrt())
        assert n.activation == pytest.approx(rms, rel=1e-5)


def test_the_example_pass_leaves_the_model_and_the_generators_alone() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5))
    model[1].eval()
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = torch.get_rng_state()
    Router(model, {"r": Region("2", [0])}, ["g"], {}, torch.zeros(1, 4))
    assert torch.equal(before, torch.get_rng_state())
    assert model.training and not model[1].training and model[2].training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
