"""Watching a region in use: the same outputs, and counts that are those of all values kept."""

import threading

import pytest
import torch
from torch import nn

from gradroute import Region, UserError, watch


def made() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.GELU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3))


def inputs(count: int, scale: float = 1.0) -> torch.Tensor:
    return torch.randn(count, 5, 6, generator=torch.Generator().manual_seed(count)) * scale


REGIONS = {"part": Region("1", "8:12"), "both": Region(("1", "3"), "0:6")}


def slow_use(model: nn.Sequential, x: torch.Tensor) -> dict[str, torch.Tensor]:
    first = model[1](model[0](x))
    second = model[3](model[2](first))
    both = torch.cat([first[..., :6], second[..., :6]], -1)
    return {
        "part": first[..., 8:12].square().mean(-1).sqrt().flatten(),
        "both": both.square().mean(-1).sqrt().flatten(),
    }


def test_usage_is_that_of_all_values_kept() -> None:
    model, trained, live = made(), inputs(400), inputs(300, 1.5)
    with watch(model, REGIONS, trained[:1], every=1) as watching, torch.no_grad():
        with watching.learning():
            for batch in trained.split(64):
                model(batch)
        for batch in live.split(50):
            model(batch)
        found = {usage.region: usage for usage in watching.usage()}
        then, now = slow_use(model, trained), slow_use(model, live)
    for name, usage in found.items():
        assert usage.points == 1500 and usage.mean == pytest.approx(float(now[name].mean()), rel=1e-5)
        assert usage.trained == pytest.approx(float(then[name].mean()), rel=1e-5)
        assert usage.above == pytest.approx(float((now[name] > then[name].quantile(0.99)).float().mean()), abs=1e-3)
        values = torch.cat([then[name], now[name]])
        exact = max(abs(float((then[name] <= v).float().mean() - (now[name] <= v).float().mean())) for v in values[::7])
        assert exact - 0.06 <= usage.shift <= exact + 1e-2 and usage.shift > 0.1


def test_the_same_data_do_not_shift_and_silent_units_neither() -> None:
    model, data = made(), inputs(400)
    next(iter(model.parameters())).data[8:] = 0  # and so is the bias
    list(model.parameters())[1].data[8:] = -1e6  # the GELU after it is silent there
    with watch(model, REGIONS, data[:1], every=1) as watching:
        with watching.learning():
            model(data)
        model(data)
        for usage in watching.usage():
            assert usage.shift < 1e-6 and usage.above <= 0.011 and usage.mean == pytest.approx(usage.trained)
        assert all(usage.points == 0 for usage in watching.usage())  # it began again


def test_watching_changes_no_output_and_no_gradient_and_leaves_no_hook() -> None:
    model, data = made(), inputs(8)
    plain = model(data)
    plain.square().mean().backward()
    gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    model.zero_grad()
    with watch(model, REGIONS, data[:1], every=1) as watching:
        with watching.learning():
            model(data)
        watched = model(data)
        watched.square().mean().backward()
    assert torch.equal(plain, watched)
    assert all(map(torch.equal, gradients, [p.grad for p in model.parameters() if p.grad is not None]))
    assert not any(module._forward_hooks for module in model.modules())


def test_every_tenth_pass_is_counted_and_a_state_needs_no_training_data() -> None:
    model, data = made(), inputs(40)
    with watch(model, REGIONS, data[:1], every=1) as learnt, learnt.learning():
        model(data)
    with watch(model, REGIONS, data[:1], every=10) as watching:
        watching.load_state_dict(learnt.state_dict())
        for _ in range(30):
            model(data)
        assert [usage.points for usage in watching.usage()] == [3 * 200, 3 * 200]


def test_passes_of_several_threads_do_not_mix() -> None:
    model, data = made(), inputs(40)
    with watch(model, REGIONS, data[:1], every=1) as watching, torch.no_grad():
        with watching.learning():
            model(data)
        sizes = [data[: 5 * (n + 1)] for n in range(6)]
        threads = [threading.Thread(target=lambda own=own: [model(own) for _ in range(20)]) for own in sizes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(usage.points == 20 * 5 * sum(map(len, sizes)) for usage in watching.usage())


def test_mistakes_are_told() -> None:
    model, data = made(), inputs(4)
    with pytest.raises(UserError, match=r"unknown site of region 'r': '9'|'9'"):
        watch(model, {"r": Region("9")}, data)
    with pytest.raises(UserError, match=r"watch: every=0: must be 1 or more"):
        watch(model, REGIONS, data, every=0)
    with watch(model, REGIONS, data) as watching:
        with pytest.raises(UserError, match=r"region 'part' has no distribution at training; call learning\(\) first"):
            watching.usage()
        with pytest.raises(UserError, match=r"no pass reached region 'part'"), watching.learning():
            pass
        with pytest.raises(UserError, match=r"watch: the state has the regions \['x'\]"):
            watching.load_state_dict({"x": {}})
