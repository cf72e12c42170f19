"""The routing core against the textbook form, and its exact invariants."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradroute import Region, Router, UserError, mask_gradient, parse_units
from gradroute.models.autoencoder import Autoencoder

WIDTH = 6
REGIONS = {"left": Region("encoder", (0, 1, 2)), "right": Region("encoder", (3, 4, 5))}
weights = st.floats(-3, 3, allow_nan=False).map(lambda v: round(v, 3))


def small_model(seed: int = 0) -> Autoencoder:
    torch.manual_seed(seed)
    return Autoencoder([5], [7], WIDTH).double()


def site_weight(model: Autoencoder) -> nn.Parameter:
    """The weight whose rows make the encoding's units."""
    return list(model.encoder.parameters())[-1]


def textbook_gradients(
    model: Autoencoder, x: torch.Tensor, index: list[int], table: torch.Tensor
) -> list[torch.Tensor]:
    """One data point at a time, `m * a + (1 - m) * a.detach()`, gradients added up by hand."""
    totals = [torch.zeros_like(p) for p in model.parameters()]
    for point, group in zip(x, index, strict=True):
        z = model.encoder(point)
        m = table[group]
        loss = (model.decoder(m * z + (1 - m) * z.detach()) - point).square().sum()
        for total, gradient in zip(totals, torch.autograd.grad(loss, list(model.parameters())), strict=True):
            total += gradient
    return totals


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000),
    index=st.lists(st.integers(0, 1), min_size=1, max_size=6),
    values=st.lists(weights, min_size=4, max_size=4),
)
def test_gradients_equal_the_textbook_form_point_by_point(seed: int, index: list[int], values: list[float]) -> None:
    model = small_model(seed)
    x = torch.randn(len(index), 5, dtype=torch.float64)
    routes = {"a": {"left": values[0], "right": values[1]}, "b": {"left": values[2], "right": values[3]}}
    router = Router(model, REGIONS, ["a", "b"], routes, x[:1])
    with router.route(torch.tensor(index)):
        loss = (model(x) - x).square().sum()
    gradients = torch.autograd.grad(loss, list(model.parameters()))
    table = torch.tensor([[values[2 * g]] * 3 + [values[2 * g + 1]] * 3 for g in (0, 1)], dtype=torch.float64)
    for ours, theirs in zip(gradients, textbook_gradients(model, x, index, table), strict=True):
        # masks are float32: a weight such as 0.1 is rounded once
        torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("weight", [0.0, 0.3, -0.75, 1.0])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_forward_bits_are_those_of_the_unrouted_model(weight: float, precision: torch.dtype) -> None:
    model = small_model().float()
    x = torch.randn(8, 5)
    router = Router(model, REGIONS, ["a"], {"a": {"left": weight}}, x[:1])
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == torch.bfloat16):
        plain = model(x)
        with router.route(torch.zeros(8, dtype=torch.long)):
            routed = model(x)
    assert torch.equal(plain, routed)


def test_off_region_gradient_is_exactly_zero_and_on_region_is_not() -> None:
    model = small_model()
    x = torch.randn(8, 5, dtype=torch.float64)
    router = Router(model, REGIONS, ["a"], {"a": {"right": 0.0}}, x[:1])
    with router.route(torch.zeros(8, dtype=torch.long)):
        (model(x) - x).abs().mean().backward()
    rows = site_weight(model).grad
    assert rows is not None
    assert bool((rows[3:] == 0).all()) and bool((rows[:3] != 0).any())


def test_activations_are_yielded_before_the_mask() -> None:
    model = small_model()
    x = torch.randn(4, 5, dtype=torch.float64)
    router = Router(model, REGIONS, ["a"], {"a": {"left": 0.0, "right": 0.0}}, x[:1])
    with router.route(torch.zeros(4, dtype=torch.long)) as activations:
        model(x)
    (gradient,) = torch.autograd.grad(activations["encoder"].abs().sum(), site_weight(model))
    assert bool((gradient != 0).any())


def test_overlapping_regions_multiply() -> None:
    model = small_model()
    regions = {"a": Region("encoder", (0, 1)), "b": Region("encoder", (1, 2))}
    router = Router(model, regions, ["g"], {"g": {"a": 0.5, "b": 0.5}}, torch.zeros(1, 5, dtype=torch.float64))
    assert router.masks["encoder"][0].tolist() == [0.5, 0.25, 0.5, 1, 1, 1]


def test_sequence_outputs_are_masked_on_the_last_axis() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2)).double()
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    router = Router(model, {"r": Region("0", (0, 1))}, ["g", "h"], {"g": {"r": 0.0}}, x[:1])
    with router.route(torch.tensor([0, 0, 0])):
        model(x).sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None and bool((gradient[:2] == 0).all()) and bool((gradient[2:] != 0).all())


def test_the_model_is_left_as_found_also_after_an_exception() -> None:
    model = small_model()
    calls: list[int] = []
    model.encoder.register_forward_hook(lambda *_: calls.append(1))
    router = Router(model, REGIONS, ["a"], {"a": {"left": 0.0}}, torch.zeros(1, 5, dtype=torch.float64))
    before = list(model.encoder._forward_hooks)
    with pytest.raises(RuntimeError, match="inside"), router.route(torch.zeros(1, dtype=torch.long)):
        raise RuntimeError("inside")
    assert list(model.encoder._forward_hooks) == before
    calls.clear()
    model(torch.zeros(1, 5, dtype=torch.float64))
    assert calls == [1]


def test_mask_gradient_works_under_vmap() -> None:
    masks = torch.tensor([[0.0, 1.0], [0.5, -1.0]])

    def total(x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return mask_gradient(x, mask).square().sum()

    x = torch.randn(2, 2)
    gradients = torch.func.vmap(torch.func.grad(total))(x, masks)
    torch.testing.assert_close(gradients, 2 * x * masks)


@pytest.mark.parametrize(
    ("region", "message"),
    [
        (Region("encodr", (0,)), "unknown site of region 'r': 'encodr'; did you mean encoder"),
        (
            Region("encoder", (4, 6)),
            "region 'r', site 'encoder' of shape (1, 6): unit 6 is out of range; units go from 0 to 5",
        ),
    ],
)
def test_bad_regions_are_refused(region: Region, message: str) -> None:
    with pytest.raises(UserError) as error:
        Router(small_model(), {"r": region}, ["g"], {}, torch.zeros(1, 5, dtype=torch.float64))
    assert message in str(error.value)


def test_a_site_that_is_not_reached_is_refused() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.used(x)
            return y

    with pytest.raises(UserError, match="not reached"):
        Router(Lazy(), {"r": Region("idle", (0,))}, ["g"], {}, torch.zeros(1, 2))


@given(start=st.integers(0, 20), length=st.integers(1, 20), step=st.integers(1, 4))
def test_unit_ranges_and_lists_agree(start: int, length: int, step: int) -> None:
    units = tuple(range(start, start + length, step))
    width = start + length
    assert parse_units(f"{start}:{width}:{step}", width, "u") == units == parse_units(list(reversed(units)), width, "u")
    assert parse_units(f"{start}::{step}", width, "u") == units


@pytest.mark.parametrize(
    ("spec", "message"),
    [(992, "bare number"), ("5:5", "empty"), ([], "empty"), ("-1:3", "cannot be read"), ("a:b", "cannot be read"),
     ([1, 1], "name each unit once"), ([-1], "unit -1 is out of range"), ({"head": [1]}, "cannot be read"),
     ("0:9:0", "cannot be read"), ({"heads": [0]}, "cannot be read as heads"), ([0.5], "cannot be read"),
     ({"heads": [0], "of": 7}, "not 1 x 7 heads"),
     ({"heads": [4], "of": 4}, "heads: unit 4 is out of range"), ([True, False], "cannot be read"),
     ([False] * 16, "empty")],
)  # fmt: skip
def test_bad_units_are_refused(spec: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_units(spec, 16, "routing.regions.top.units")
