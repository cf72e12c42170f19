"""An audit's measures against slow, obvious references."""

import math
import statistics
from itertools import pairwise

import pytest
import torch
from scipy import stats
from torch import nn

from gradroute.audit.attacks import Attempt, chosen, drawn, rounded, shaken
from gradroute.audit.findings import divergence
from gradroute.audit.measures import area, auroc, savings
from gradroute.audit.probes import shifted
from gradroute.audit.units import Biased, restored
from gradroute.reporting.intervals import mean_interval


def test_the_area_is_the_mean_height_of_the_line_between_points() -> None:
    points = [(0, 4.0), (1, 3.0), (4, 1.5), (8, 1.0)]
    fine = []
    for step in range(8000):
        x = (step + 0.5) / 1000
        left, right = next(pair for pair in pairwise(points) if pair[0][0] <= x <= pair[1][0])
        share = (x - left[0]) / (right[0] - left[0])
        fine.append(left[1] + share * (right[1] - left[1]))
    assert area(points) == pytest.approx(statistics.mean(fine), abs=1e-6)
    assert area([(3, 2.0)]) == 2.0


def test_savings_are_the_lead_over_the_never_trained_model() -> None:
    assert savings([(0, 2.0), (4, 1.0)], [(0, 3.0), (4, 1.0)]) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="different updates"):
        savings([(0, 2.0)], [(1, 2.0)])


def test_the_interval_is_scipys_t_interval() -> None:
    values = [0.3, 0.1, 0.4, 0.15]
    mean, low, high = mean_interval(values)
    found = stats.t.interval(0.95, 3, statistics.mean(values), stats.sem(values))
    assert (mean, low, high) == pytest.approx((statistics.mean(values), *found))
    assert mean_interval([0.2]) == (0.2, -math.inf, math.inf)


def test_auroc_counts_pairs() -> None:
    right, wrong = [0.2, 0.9, 0.5, 0.5], [0.5, 0.1, 0.9]
    pairs = [1.0 if r > w else 0.5 if r == w else 0.0 for r in right for w in wrong]
    assert auroc(right, wrong) == pytest.approx(statistics.mean(pairs))


def test_divergence_is_the_sum_over_outcomes() -> None:
    first, second = (torch.randn(4, 5).log_softmax(-1) for _ in range(2))
    slow = [
        sum(math.exp(p) * (p - q) for p, q in zip(*rows, strict=True))
        for rows in zip(first.tolist(), second.tolist(), strict=True)
    ]
    assert divergence(first, second) == pytest.approx(statistics.mean(slow), abs=1e-6)
    assert divergence(first, first) == 0


def test_rounding_leaves_the_nearest_of_the_levels_of_each_row() -> None:
    model = nn.Linear(6, 3)
    before, bias = model.weight.detach().clone(), model.bias.detach().clone()
    rounded(model, 4)
    for row, own in zip(before.tolist(), model.weight.tolist(), strict=True):
        levels = [n * max(map(abs, row)) / 7 for n in range(-7, 8)]
        assert own == pytest.approx([min(levels, key=lambda level: abs(level - x)) for x in row], abs=1e-6)
    assert torch.equal(model.bias, bias)


def test_a_changed_model_is_restored_to_the_bit() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with restored(model):
        shaken(model, 0.5, seed=0)
        model(torch.randn(8, 4))
        assert not torch.equal(model.state_dict()["0.weight"], before["0.weight"])
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_noise_has_the_size_that_was_asked_for() -> None:
    model = nn.Linear(300, 300)
    before = model.weight.detach().clone()
    shaken(model, 0.1, seed=1)
    change = (model.weight - before).std()
    assert float(change.detach() / before.std()) == pytest.approx(0.1, rel=0.02)


def test_only_the_bias_of_a_calibrated_model_gets_gradients() -> None:
    model = nn.Linear(3, 5)
    biased = Biased(model, 5)
    biased(torch.randn(2, 3)).square().sum().backward()
    assert model.weight.grad is None
    assert biased.bias.grad is not None and bool(biased.bias.grad.abs().sum() > 0)


def test_every_point_is_drawn_equally_often_in_whole_passes() -> None:
    plan = drawn(6, 3, 4, seed=0)
    assert [len(set(own)) for own in plan] == [3] * 4
    assert sorted(plan[0] + plan[1]) == sorted(plan[2] + plan[3]) == list(range(6))


def test_wrong_tokens_are_the_right_ones_elsewhere() -> None:
    values = torch.tensor([1, 1, 2, 3, 3, 4])
    wrong = shifted(values, torch.Generator().manual_seed(0))
    assert sorted(wrong.tolist()) == sorted(values.tolist())
    assert not bool((wrong == values).any())


def _attempt(rate: float, *losses: float, test: float = 0.0) -> Attempt:
    return Attempt(rate, list(enumerate(losses)), [(x, test) for x in range(len(losses))])


def test_the_attacker_takes_the_lowest_validation_curve_of_what_has_not_diverged() -> None:
    slow, fast = _attempt(0.1, 3.0, 2.5, 2.0, test=1.0), _attempt(0.2, 3.0, 2.0, 1.5, test=9.0)
    burst, worse = _attempt(9.0, 3.0, 0.1, math.nan), _attempt(5.0, 3.0, 0.1, 4.0)
    assert chosen([slow, fast, burst, worse]) is fast  # the test loss has no say
    assert [own.diverged for own in (slow, fast, burst, worse)] == [False, False, True, True]
    assert chosen([burst, worse]) is worse
