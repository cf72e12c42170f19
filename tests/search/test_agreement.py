"""The agreement of groups at a site, against slow forms and numbers that can be checked by hand."""

import itertools
import math

import pytest
import torch
from torch import nn

from gradroute.search import agreement


def test_signals_are_the_gradients_of_a_linear_map_at_the_site() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = nn.Linear(5, 4), nn.Linear(4, 3)
    inputs, targets = torch.randn(7, 5, generator=generator), torch.randn(7, 3, generator=generator)
    found = agreement.Signals.empty(1, 4, 4)
    activations = before(inputs).detach().requires_grad_()
    losses = (after(activations) - targets).square().sum(1)
    (gradients,) = torch.autograd.grad(losses.sum(), activations)
    found.add(0, gradients, activations.detach())
    each = []
    for activation, target in zip(activations.detach(), targets, strict=True):
        placed = torch.eye(4, requires_grad=True)
        loss = (after(placed @ activation) - target).square().sum()
        each.append(torch.autograd.grad(loss, placed)[0])
    torch.testing.assert_close(found.mean[0], torch.stack(each).mean(0))
    torch.testing.assert_close(found.fisher[0], torch.stack(each).square().mean(0))


def test_cosines_overlaps_and_shares_are_what_they_say() -> None:
    same, turned = torch.tensor([[3.0, 4.0], [1.0, 0.0]]), torch.tensor([[-3.0, -4.0], [0.0, 2.0]])
    inner = agreement.products(torch.stack([same, turned]))
    torch.testing.assert_close(agreement.pairs(agreement.cosines(inner)), torch.tensor([-1.0, 0.0]))
    fisher = torch.stack([same, turned]).square()
    torch.testing.assert_close(agreement.pairs(agreement.overlaps(fisher)), torch.tensor([1.0, 0.0]))
    found = agreement.shares(fisher)  # norms 5, 1 and 5, 2, of sums 6 and 7
    torch.testing.assert_close(found[:, 0], torch.tensor([5 / 6, 5 / 7]) / (5 / 6 + 5 / 7))
    torch.testing.assert_close(found.sum(0), torch.ones(2))
    torch.testing.assert_close(agreement.shares(torch.zeros(2, 3, 1)), torch.full((2, 3), 0.5))


def test_conflict_is_the_share_of_a_step_that_raises_the_other_loss() -> None:
    inner = agreement.products(torch.tensor([[[1.0], [1.0]], [[3.0], [-1.0]]]))
    assert agreement.conflict(inner) == pytest.approx(1 / 4)  # 3 shared, 1 against
    assert agreement.conflict(agreement.products(torch.tensor([[[1.0]], [[2.0]]]))) == 0.0
    assert agreement.conflict(torch.zeros(2, 2, 3)) == 0.0


def test_what_is_common_is_the_cosine_with_the_others_sum() -> None:
    vectors = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(1))
    units = [0, 2, 3]
    own, others = vectors[1, units].flatten(), (vectors[0] + vectors[2])[units].flatten()
    expected = float(torch.nn.functional.cosine_similarity(own, others, dim=0))
    assert agreement.common(agreement.products(vectors), 1, units) == pytest.approx(expected, rel=1e-5)


def test_the_outside_weight_takes_back_what_arrives_without_a_label_and_in_common() -> None:
    assert agreement.outside_weight(0.0) == 0.0 and agreement.outside_weight(-0.3) == 0.0
    assert agreement.outside_weight(0.0, labelled=0.25) == pytest.approx(-3.0)  # as `routing.compensate: labels`
    for shared, labelled in ((0.4, 1.0), (0.2, 0.5)):
        weight = agreement.outside_weight(shared, labelled)
        assert labelled * weight + (1 - labelled) + shared == pytest.approx(0)
    assert agreement.outside_weight(0.9) == -0.5 and agreement.outside_weight(1.0, labelled=0.01) == -4.0


def test_sizes_go_with_the_root_of_the_points_and_none_is_empty() -> None:
    assert agreement.sizes([500, 500], 32) == [16, 16]
    assert agreement.sizes([1, 1, 1], 4) == [2, 1, 1]
    few = agreement.sizes([50, 950], 32)
    assert sum(few) == 32 and few[0] == pytest.approx(1 + 30 * math.sqrt(50) / (math.sqrt(50) + math.sqrt(950)), abs=1)
    assert min(agreement.sizes([1, 10**9], 2)) == 1
    with pytest.raises(ValueError, match="1 units for 2 groups"):
        agreement.sizes([1, 1], 1)


@pytest.mark.parametrize("given", [(2, 4), (1, 2, 3), (2, 2, 2)])
def test_the_assignment_is_the_best_of_all(given: tuple[int, ...]) -> None:
    liking = torch.rand(len(given), 6, generator=torch.Generator().manual_seed(3))
    owner = agreement.assigned(liking, given)
    assert [int((owner == group).sum()) for group in range(len(given))] == list(given)
    groups = [group for group, count in enumerate(given) for _ in range(count)]
    best = max(sum(float(liking[g, u]) for u, g in enumerate(order)) for order in set(itertools.permutations(groups)))
    assert float(liking[owner, torch.arange(6)].sum()) == pytest.approx(best, rel=1e-6)


def test_an_assignment_needs_sizes_that_fit() -> None:
    with pytest.raises(ValueError, match="sizes"):
        agreement.assigned(torch.rand(2, 4), (1, 2))


def test_a_projection_keeps_products_on_average() -> None:
    assert agreement.projection(agreement.INPUTS, 0) is None
    vectors = torch.randn(2, 400, generator=torch.Generator().manual_seed(0))
    kept = [
        float((vectors[0] @ p) @ (vectors[1] @ p)) for n in range(60) if (p := agreement.projection(400, n)) is not None
    ]
    spread = float(vectors[0].norm() * vectors[1].norm()) / math.sqrt(agreement.INPUTS)
    assert sum(kept) / 60 == pytest.approx(float(vectors[0] @ vectors[1]), abs=4 * spread / math.sqrt(60))


def test_what_a_site_holds_is_its_share_of_the_largest_rises() -> None:
    assert agreement.held([2.0, 4.0], [2.0, 4.0]) == 1.0
    assert agreement.held([1.0, -1.0], [2.0, 4.0]) == 0.25  # an ablation that helps holds nothing
    assert agreement.held([0.0], [0.0]) == 0.0


def test_contrast_is_one_where_only_the_own_group_is_lost() -> None:
    assert agreement.contrast([2.0, 4.0], [0.0, 0.0], [2.0, 4.0]) == 1.0
    assert agreement.contrast([1.0, 1.0], [1.0, 1.0], [2.0, 2.0]) == 0.0
    assert agreement.contrast([0.0], [0.0], [0.0]) == 0.0


def test_a_leak_is_what_others_tell_on_new_points() -> None:
    generator = torch.Generator().manual_seed(0)
    others, noise = torch.randn(400, 6, generator=generator), torch.randn(400, 3, generator=generator)
    told = others @ torch.randn(6, 3, generator=generator)
    assert agreement.leak(told, others, ridge=1e-9) == pytest.approx(1, abs=1e-6)
    assert agreement.leak(noise, others) < 0.05
    half = told / told.std() + noise
    assert 0.3 < agreement.leak(half, others) < 0.7
    assert agreement.leak(torch.zeros(10, 2), others[:10]) == 0.0
