"""Masks that are learned by looking ahead: their gradient, and a problem whose answer is known."""

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from gradroute.search.lookahead import Lookahead, ahead, cost, masks, memberships, objective, slope

PLAN = Lookahead(steps=2, rate=0.3, sizes=(0.5, 0.5))


class Toy:
    """Four units between an input and an output for each of two groups: `hidden = input @ into`, `out = hidden @ of`.

    The output of each group reads two units of its own, so a mask that keeps the groups apart is known.
    """

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = [torch.randn(32, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
        self.targets = [x.sum(1) for x in self.inputs]
        self.of = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
        self.parameters = {"into": 0.1 * torch.randn(3, 4, generator=generator, dtype=torch.float64)}

    def __call__(
        self, given: Mapping[str, torch.Tensor], group: int, mask: torch.Tensor | None, factors: torch.Tensor | None
    ) -> torch.Tensor:
        hidden = self.inputs[group] @ given["into"]
        if mask is not None:
            hidden = hidden * mask + hidden.detach() * (1 - mask)
        if factors is not None:
            hidden = hidden * factors
        return (hidden @ self.of[group] - self.targets[group]).square().mean()


def test_an_update_ahead_is_that_of_weighed_gradients() -> None:
    toy, weights = Toy(), torch.tensor([[1.0, 0.3, 0.0, 0.0], [0.0, 0.0, 1.0, 0.5]], dtype=torch.float64)
    found = ahead(toy, toy.parameters, weights, Lookahead(1, 0.3, (0.5, 0.5)))["into"]
    expected = toy.parameters["into"].clone()
    for group in range(2):
        into = toy.parameters["into"].clone().requires_grad_()
        toy({"into": into}, group, None, None).backward()
        assert into.grad is not None
        expected -= 0.3 * into.grad * weights[group] / 2  # a unit's gradient reaches its column alone
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_the_gradient_of_the_masks_is_that_of_finite_differences(lowest: float) -> None:
    toy = Toy()
    logits = torch.randn(2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    plan = Lookahead(steps=1, rate=0.3, sizes=(0.5, 0.5), lowest=lowest)
    found = slope(logits, toy, toy.parameters, plan)
    for place in [(0, 0), (1, 2), (0, 3)]:
        changed = torch.zeros_like(logits)
        changed[place] = 1e-5
        ends = [float(objective(logits + sign * changed, toy, toy.parameters, plan)) for sign in (1, -1)]
        assert float(found[place]) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-4, abs=1e-9)


@pytest.mark.parametrize("lowest", [0.0, -1.0])
def test_units_go_to_the_group_that_reads_them(lowest: float) -> None:
    toy, logits, plan = Toy(), torch.zeros(2, 4, dtype=torch.float64), replace(PLAN, lowest=lowest)
    for _ in range(40):
        logits = logits - 1.0 * slope(logits, toy, toy.parameters, plan)
    owned, weights = memberships(logits), masks(logits, lowest)
    assert bool(((weights >= lowest) & (weights <= 1)).all()) and (float(weights.min()) < 0) == (lowest < 0)
    torch.testing.assert_close(owned.sum(0), torch.ones(4, dtype=torch.float64))
    assert owned.argmax(0).tolist() == [0, 0, 1, 1]


def test_the_cost_counts_every_pass() -> None:
    assert cost(Lookahead(2, 0.1, (0.5, 0.5)), 2) == 9
