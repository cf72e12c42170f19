"""Routing of random networks against the slow reference: one data point at a time, edge weights applied by hand."""

from dataclasses import dataclass, field
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradroute import Region, Router

WEIGHTS = st.one_of(st.sampled_from([0.0, 1.0, -0.75, 0.5]), st.floats(-3, 3).map(lambda v: round(v, 3)))


@dataclass
class Case:
    """A random network of Linear and Tanh, regions on some of its layers, and routes."""

    model: nn.Sequential
    x: torch.Tensor
    regions: dict[str, Region]
    routes: dict[str, dict[str, float]]
    groups: list[str] = field(default_factory=lambda: ["a", "b", "c"])

    def shares(self, membership: torch.Tensor) -> torch.Tensor:
        """Any membership as shares `(…, groups)`."""
        if membership.is_floating_point():
            return membership
        known = torch.nn.functional.one_hot(membership.clamp(min=0), len(self.groups)).double()
        return known * (membership >= 0)[..., None]

    def weights_at(self, layer: int, shares: torch.Tensor) -> torch.Tensor:
        """Every unit's weight for one data point or its tokens, `shares` `(…, groups)`: the definition, spelt out."""
        linear: Any = self.model[layer - layer % 2]
        width = linear.out_features
        weights = torch.ones(*shares.shape[:-1], width, dtype=torch.float64)
        for unit in range(width):
            total = 1 - shares.sum(-1)  # the default route
            for g, group in enumerate(self.groups):
                product = 1.0
                for name, region in self.regions.items():
                    if str(layer) in region.site and unit in region.units:
                        product *= self.routes.get(group, {}).get(name, 1.0)
                total = total + shares[..., g] * product
            weights[..., unit] = total
        return weights

    def reference(self, membership: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of the summed squared output, propagated by hand from layer to layer."""
        parameters = list(self.model.parameters())
        totals = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        for point, shares in zip(self.x, self.shares(membership), strict=True):
            activations = [point]
            for layer in self.model:
                activations.append(layer(activations[-1]))
            gradient = 2 * activations[-1].detach()
            for i in reversed(range(len(self.model))):
                gradient = gradient * self.weights_at(i, shares)
                before = activations[i].detach().requires_grad_()
                own = list(self.model[i].parameters())
                found = torch.autograd.grad(self.model[i](before), [before, *own], gradient)
                gradient = found[0]
                for parameter, part in zip(own, found[1:], strict=True):
                    totals[parameter] += part
        return [totals[parameter] for parameter in parameters]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    torch.manual_seed(draw(st.integers(0, 1000)))
    widths = draw(st.lists(st.integers(1, 5), min_size=2, max_size=4))
    layers: list[nn.Module] = []
    for inputs, outputs in zip([3, *widths], widths, strict=False):
        layers += [nn.Linear(inputs, outputs), nn.Tanh()]
    model = nn.Sequential(*layers).double()
    regions = {}
    for number in range(draw(st.integers(1, 3))):
        width = draw(st.sampled_from(widths))
        sites = [str(i) for i in range(len(layers)) if widths[i // 2] == width]
        chosen = draw(st.lists(st.sampled_from(sites), min_size=1, max_size=3, unique=True))
        units = sorted(draw(st.sets(st.integers(0, width - 1), min_size=1)))
        regions[f"r{number}"] = Region(tuple(chosen), units)
    rows = st.dictionaries(st.sampled_from(sorted(regions)), WEIGHTS)
    routes = draw(st.dictionaries(st.sampled_from(["a", "b", "c"]), rows))
    batch, tokens = draw(st.integers(1, 4)), draw(st.integers(0, 3))
    x = torch.randn(batch, *([tokens] if tokens else []), 3, dtype=torch.float64)
    return Case(model, x, regions, routes)


@settings(max_examples=150, deadline=None)
@given(case=cases(), kind=st.sampled_from(["point", "token", "mixed point", "mixed token"]))
def test_gradients_equal_the_reference_and_the_forward_pass_is_the_same(case: Case, kind: str) -> None:
    lead = case.x.shape[:-1] if "token" in kind else case.x.shape[:1]
    mixed = torch.rand(*lead, 3, dtype=torch.float64)
    membership = mixed / mixed.sum(-1, keepdim=True) * 0.9 if "mixed" in kind else torch.randint(-1, 3, lead)
    router = Router(case.model, case.regions, case.groups, case.routes, case.x[:1])
    plain = case.model(case.x)
    with router.route(membership):
        output = case.model(case.x)
    assert torch.equal(plain, output)
    ours = torch.autograd.grad(output.square().sum(), list(case.model.parameters()))
    if case.x.dim() == 3 and len(lead) == 1:  # the reference wants a share for every token
        membership = case.shares(membership)[:, None].expand(-1, case.x.shape[1], -1)
    for mine, theirs in zip(ours, case.reference(membership), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-6, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(case=cases(), data=st.data())
def test_nested_routers_multiply(case: Case, data: st.DataObject) -> None:
    membership = torch.randint(-1, 3, case.x.shape[:1])
    other = {group: {region: data.draw(WEIGHTS) for region in case.regions} for group in case.groups}
    both = {
        group: {r: case.routes.get(group, {}).get(r, 1.0) * other[group][r] for r in case.regions}
        for group in case.groups
    }

    def gradients(*routes: dict[str, dict[str, float]]) -> list[torch.Tensor]:
        routers = [Router(case.model, case.regions, case.groups, r, case.x[:1]) for r in routes]
        contexts = [router.route(membership) for router in routers]
        for context in contexts:
            context.__enter__()
        loss = case.model(case.x).square().sum()
        for context in contexts:  # in the order of entering, not the reverse
            context.__exit__(None, None, None)
        return list(torch.autograd.grad(loss, list(case.model.parameters())))

    for nested, product in zip(gradients(case.routes, other), gradients(both), strict=True):
        torch.testing.assert_close(nested, product, rtol=1e-6, atol=1e-12)
    assert not any(module._forward_hooks for module in case.model.modules())
