"""Routes, hooks and monitors hold in the thread or task that entered them; what cannot be told apart raises."""

import asyncio
import contextvars
import copy
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from gradroute import Monitor, ParameterRegion, ParameterRouter, Region, Router, UserError
from gradroute.routing import ablation
from gradroute.routing.sites import observed

REGIONS = {"left": Region("0", "0:3"), "right": Region("0", "3:6")}
ROUTES = {"a": {"right": 0.0}, "b": {"left": 0.0, "right": -0.5}}
THREADS, ROUNDS = 8, 25


class Slow(nn.Module):
    """The identity; lets other threads run in the middle of a pass."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        threading.Event().wait(0.0003)
        return x


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), Slow(), nn.Tanh(), nn.Linear(6, 4)).double()


def router_of(model: nn.Module) -> Router:
    return Router(model, REGIONS, ["a", "b"], ROUTES, torch.zeros(1, 4, dtype=torch.float64))


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    own = torch.Generator().manual_seed(seed)
    size = 1 + seed % 3
    x = torch.randn(size, 4, generator=own, dtype=torch.float64)
    return x, torch.randint(-1, 2, (size,), generator=own)


def gradients(model: nn.Module, router: Router, seed: int) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The gradients of a batch of its own, and the site's activations."""
    x, group = batch(seed)
    with router.route(group) as activations:
        loss = model(x).square().sum()
    return list(torch.autograd.grad(loss, list(model.parameters()))), activations["0"]


def assert_same(ours: Any, theirs: Any) -> None:
    for one, other in zip((*ours[0], ours[1]), (*theirs[0], theirs[1]), strict=True):
        assert torch.equal(one, other)


@contextmanager
def open_elsewhere(block: Callable[[], Any]) -> Iterator[None]:
    """Have another thread be inside a block of its own, which it leaves by an error, while this one works."""
    inside, leave = threading.Event(), threading.Event()

    def hold() -> None:
        with suppress(InterruptedError), block():
            inside.set()
            leave.wait(30)
            raise InterruptedError  # a route that ends well must have reached its sites

    thread = threading.Thread(target=hold)
    thread.start()
    assert inside.wait(30)
    try:
        yield
    finally:
        leave.set()
        thread.join()


@pytest.mark.parametrize("attached", [False, True])
def test_threads_have_their_own_batchs_gradients(attached: bool) -> None:
    model = net()
    router = router_of(model)
    seeds = range(THREADS * ROUNDS)
    expected = [gradients(model, router, seed) for seed in seeds]
    with router.attached() if attached else threading.Lock(), ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda seed: gradients(model, router, seed), seeds))
    for ours, theirs in zip(found, expected, strict=True):
        assert_same(ours, theirs)
    assert not any(module._forward_hooks for module in model.modules())


def test_tasks_have_their_own_batchs_gradients() -> None:
    model = net()
    router = router_of(model)

    async def task(seed: int) -> Any:
        x, group = batch(seed)
        with router.route(group) as activations:
            await asyncio.sleep(0)  # the other tasks enter
            output = model(x)
            await asyncio.sleep(0)
        found = torch.autograd.grad(output.square().sum(), list(model.parameters()))
        return list(found), activations["0"]

    async def all_tasks() -> list[Any]:
        return await asyncio.gather(*map(task, range(12)))

    for seed, found in enumerate(asyncio.run(all_tasks())):
        assert_same(found, gradients(model, router, seed))


def test_a_pass_without_a_route_beside_another_threads_is_refused_unless_nothing_is_trained() -> None:
    model = net()
    router = router_of(model)
    x, _ = batch(2)
    plain = model(x)
    with open_elsewhere(lambda: router.route("a")):
        with pytest.raises(UserError, match=r"without a route.*enter route here too, with -1"):
            model(x)
        with torch.no_grad():
            assert torch.equal(model(x), plain)
        with router.route(-1):
            found = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    expected = torch.autograd.grad(plain.square().sum(), list(model.parameters()))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_part_of_a_pass_in_another_thread_takes_a_copy_of_the_context() -> None:
    model = net()
    router = router_of(model)
    x, group = batch(2)
    with router.route(group) as activations, ThreadPoolExecutor(1) as pool:
        context = contextvars.copy_context()
        loss = pool.submit(context.run, lambda: model(x).square().sum()).result()
    found = torch.autograd.grad(loss, list(model.parameters()))
    assert_same((list(found), activations["0"]), gradients(model, router, 2))
    after = context.run(model, x)  # the block has ended in the copy, too
    assert torch.equal(
        torch.autograd.grad(after.sum(), list(model.parameters())[-1])[0], torch.full((4,), len(x), dtype=torch.float64)
    )
    assert not model[0]._forward_hooks


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = checkpoint(self.inner, x, use_reentrant=False)
        return y


def checkpointed() -> tuple[Checkpointed, Router]:
    model, regions = Checkpointed(), {"left": Region("inner.0", "0:3"), "right": Region("inner.0", "3:6")}
    return model, Router(model, regions, ["a", "b"], ROUTES, torch.zeros(1, 4, dtype=torch.float64))


def test_a_checkpointed_pass_is_repeated_under_its_route_in_a_thread_of_autograd() -> None:
    """On a GPU, autograd repeats the pass in a thread of its own, whose context is empty; here, a thread does so."""
    model, router = checkpointed()
    x, group = batch(2)
    with router.route(group), ThreadPoolExecutor(1) as pool:
        pool.submit(model(x).square().sum().backward).result()
    plain = net()
    expected, _ = gradients(plain, router_of(plain), 2)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient)


def test_a_checkpointed_pass_of_one_of_two_routes_is_refused_in_a_thread_of_autograd() -> None:
    model, router = checkpointed()
    x, group = batch(2)
    with open_elsewhere(lambda: router.route("a")), router.route(group), ThreadPoolExecutor(1) as pool:
        loss = model(x).square().sum()
        with pytest.raises(UserError, match="another thread"):
            pool.submit(loss.backward).result()
        loss = model(x).square().sum()
        loss.backward()  # in the thread that entered


def test_a_monitor_belongs_to_one_thread() -> None:
    model = net()
    router = router_of(model)
    monitor = Monitor(router.regions, router.groups)
    with open_elsewhere(lambda: router.route("a", monitor)):
        with pytest.raises(UserError, match="give each thread its own"), router.route("b", monitor):
            pass
        with router.route("b", Monitor(router.regions, router.groups)):
            model(batch(2)[0])


def test_ablations_and_observers_hold_in_their_thread() -> None:
    model = net()
    router = router_of(model)
    x, other = batch(1)[0], batch(2)[0]
    plain = model(x)
    zeroed = ablation.zero("left", router)
    with open_elsewhere(lambda: zeroed.applied(model)):
        assert torch.equal(model(x), plain)
        with zeroed.applied(model):
            assert not torch.equal(model(x), plain)
    with ThreadPoolExecutor(1) as pool, observed(model, router.sites) as seen:
        model(x)
        pool.submit(model, other).result()
    assert torch.equal(seen["0"], model[0](x))


def test_replicas_of_a_stack_hold_in_their_thread() -> None:
    model = net()
    router = router_of(model)
    ones = {name: (torch.ones_like(w), torch.ones_like(f)) for name, (w, f) in router.tables().items()}
    expected = gradients(model, router, 2)
    with open_elsewhere(lambda: router.using(ones)):
        assert_same(gradients(model, router, 2), expected)
    with router.using(ones):
        unrouted, _ = gradients(model, router, 2)
    assert not torch.equal(unrouted[0], expected[0][0])


def test_parameter_routes_of_threads_add_up() -> None:
    model, (x, _) = net(), batch(2)
    regions = {"first": ParameterRegion({"0.*": "0:3"})}
    router = ParameterRouter(model, regions, ["a"], {"a": {"first": 0.0}})

    def step(group: str | None) -> None:
        router.backward({group: model(x).square().sum()})

    groups = ["a", None] * 20
    for group in groups:
        step(group)
    expected = [copy.deepcopy(p.grad) for p in model.parameters()]
    model.zero_grad()
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(step, groups))
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)


def test_a_backward_pass_beside_that_of_parameter_routes_is_refused() -> None:
    class Waits(torch.autograd.Function):
        """The identity; its backward pass waits for the other thread's."""

        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
            inside.set()
            leave.wait(30)
            return gradients[0]

    inside, leave = threading.Event(), threading.Event()
    model, (x, _) = net(), batch(2)
    router = ParameterRouter(model, {"first": ParameterRegion({"0.*": "0:3"})}, ["a"], {"a": {"first": 0.0}})
    thread = threading.Thread(target=lambda: router.backward({"a": Waits.apply(model(x)).square().sum()}))
    loss = model(x).sum()
    thread.start()
    assert inside.wait(30)
    try:
        with pytest.raises(UserError, match="another thread"):
            loss.backward()
    finally:
        leave.set()
        thread.join()
    model(x).sum().backward()
