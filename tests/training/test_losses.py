"""The loss against a direct transcription of the published protocol (two decoder passes, GR App. B)."""

from itertools import product

import pytest
import torch
from torch import nn

from gradroute import Region, Router
from gradroute.config.schema import LossesConfig
from gradroute.models.autoencoder import Autoencoder
from gradroute.models.base import perceptron
from gradroute.tasks.image_objectives import ReconstructionObjective
from gradroute.training.measures import MAE
from gradroute.training.objectives import group_means
from gradroute.training.penalties import correlation_penalty, l1_by_unit


def transcription(model: Autoencoder, certificates: nn.ModuleDict, x: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """Setting 1 as published: one decoder pass per group, `detach` for the mask, every loss spelt out."""
    z = model.encoder(x)
    top, bottom = z[:, :4], z[:, 4:]
    loss: torch.Tensor = (model.decoder(torch.cat([top, bottom.detach()], 1)[low]) - x[low]).abs().mean()
    loss = loss + (model.decoder(torch.cat([top.detach(), bottom], 1)[~low]) - x[~low]).abs().mean()
    loss = loss + (certificates["top"](top.detach()) - x).abs().mean()
    loss = loss + (certificates["bottom"](bottom.detach()) - x).abs().mean()
    loss = loss + 3e-3 * z.norm(p=1, dim=1).mean()
    total = torch.zeros((), dtype=x.dtype)
    for i, j in product(range(4), range(4, 8)):
        a, b = ((z[:, k] - z[:, k].mean()) / z[:, k].std() for k in (i, j))
        total = total + ((a * b).sum() / len(x)).abs()
    return loss + 0.1 * total / 16


def test_loss_and_gradients_equal_the_published_protocol() -> None:
    torch.manual_seed(3)
    model = Autoencoder([12], [10, 9], 8).double()
    certificates = nn.ModuleDict({n: perceptron([4, 9, 10, 12]) for n in ("top", "bottom")}).double()
    x, low = torch.rand(20, 12, dtype=torch.float64) * 2 - 1, torch.arange(20) % 3 > 0
    regions = {"top": Region("encoder", (0, 1, 2, 3)), "bottom": Region("encoder", (4, 5, 6, 7))}
    router = Router(model, regions, ["low", "high"], {"low": {"bottom": 0.0}, "high": {"top": 0.0}}, x[:1])
    config = LossesConfig(["top", "bottom"], {"top": 3e-3, "bottom": 3e-3}, 0.1)
    terms = ReconstructionObjective(model, certificates, router, config)(x, (~low).long())
    ours = torch.stack([value * weight for value, weight in terms.values()]).sum()
    theirs = transcription(model, certificates, x, low)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=0)
    parameters = [*model.parameters(), *certificates.parameters()]
    for a, b in zip(torch.autograd.grad(ours, parameters), torch.autograd.grad(theirs, parameters), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-15)


def test_an_empty_group_contributes_zero_and_no_nan() -> None:
    values = torch.tensor([1.0, 3.0], requires_grad=True)
    means = group_means(values, torch.tensor([0, 0]), 3)
    assert means.tolist() == [2, 0, 0]
    means.sum().backward()
    assert values.grad is not None and values.grad.tolist() == [0.5, 0.5]


def test_correlation_survives_constant_units_and_tiny_batches() -> None:
    constant, varied = torch.ones(5, 2, requires_grad=True), torch.randn(5, 3)
    penalty = correlation_penalty([constant, varied])
    penalty.backward()
    assert penalty.item() == 0 and constant.grad is not None and bool(constant.grad.isfinite().all())
    assert float(correlation_penalty([torch.randn(1, 2), torch.randn(1, 2)])) == 0


@pytest.mark.parametrize("sizes", [(2, 3), (1, 2, 4)])
def test_correlation_averages_over_all_pairs_in_different_regions(sizes: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    regions = [torch.randn(30, n, dtype=torch.float64) for n in sizes]
    owner = [i for i, n in enumerate(sizes) for _ in range(n)]
    # numpy's definition divides by n - 1 twice over; the published one mixes n - 1 and n
    matrix = torch.corrcoef(torch.cat(regions, 1).T).abs() * 29 / 30
    pairs = [matrix[i, j] for i, j in product(range(len(owner)), repeat=2) if owner[i] < owner[j]]
    torch.testing.assert_close(correlation_penalty(regions), torch.stack(pairs).mean())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_l1_of_each_unit_and_its_gradient_equal_the_definition(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    activation = torch.randn(3, 5, 7).where(torch.rand(3, 5, 7) > 0.3, 0.0).to(dtype).requires_grad_()
    weights = torch.randn(7, dtype=torch.promote_types(dtype, torch.float32))
    found = l1_by_unit(activation)
    exact = activation.to(weights.dtype).abs().flatten(0, 1).mean(0)
    torch.testing.assert_close(found, exact)
    (gradient,) = torch.autograd.grad(found @ weights, activation, retain_graph=True)
    (right,) = torch.autograd.grad(exact @ weights, activation)
    torch.testing.assert_close(gradient, right)
    assert gradient.dtype == dtype and not gradient[activation == 0].any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_absolute_error_and_its_gradient_are_those_of_the_formula(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    targets = torch.rand(700, 784, dtype=torch.promote_types(dtype, torch.float32)) * 2 - 1  # more than one part
    outputs, weights = torch.randn(700, 784).to(dtype).requires_grad_(), torch.rand(700, dtype=targets.dtype)
    targets[:, :9] = outputs.detach()[:, :9]  # no error, no gradient
    own = MAE(outputs, targets)
    formula = (outputs.to(targets.dtype) - targets).abs().mean(1)
    torch.testing.assert_close(own, formula, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0)
    (one,), (other,) = (torch.autograd.grad(value @ weights, outputs) for value in (own, formula))
    assert torch.equal(one, other) and not bool(one[:, :9].any())
    with torch.no_grad():
        torch.testing.assert_close(MAE(outputs, targets), formula)
    stacked = torch.vmap(MAE)(outputs.view(2, 350, 784), targets.view(2, 350, 784))
    torch.testing.assert_close(stacked.flatten(), own)
    assert torch.equal(torch.autograd.grad(stacked.flatten() @ weights, outputs)[0], other)
