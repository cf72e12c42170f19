"""The training loop: converges, repeats itself, follows its schedule, and stops on a loss that is not finite."""

import math

import pytest
import torch
from torch import nn

from gradroute.config.schema import TrainerConfig
from gradroute.errors import UserError
from gradroute.training.devices import computing, pick_device, pick_precision
from gradroute.training.fit import Fit
from gradroute.training.objectives import Objective, Term, Terms
from gradroute.training.order import batches, learning_rate
from gradroute.training.training import Training

TERM = Term("decoder", "all", "all", "mae")


class Distance(Objective):
    """Mean absolute difference of a linear map's output, times `scale`."""

    def __init__(self, scale: float) -> None:
        super().__init__({TERM: 1.0})
        self.model, self.scale = nn.Linear(3, 1), scale

    def forward(self, x: torch.Tensor, target: torch.Tensor) -> Terms:
        return {TERM: (self.scale * (self.model(x) - target).abs().mean(), self.weights[TERM])}


def train(trainer: TrainerConfig, scale: float = 1.0) -> tuple[list[float], nn.Linear]:
    """Fit a linear map to a known one; returns the loss by epoch and the map."""
    torch.manual_seed(trainer.epochs)
    x = torch.randn(64, 3)
    target = x @ torch.tensor([[1.0], [-2.0], [0.5]])
    objective, losses = Distance(scale), list[float]()
    training = Training(
        "train",
        objective,
        batch=lambda rows: (x[rows], target[rows]),
        points=64,
        trainer=trainer,
        order=torch.Generator().manual_seed(1),
        on_epoch=lambda epoch, step, means: losses.append(means[TERM]),
    )
    Fit([training], "float32", torch.device("cpu")).run()
    assert isinstance(objective.model, nn.Linear)
    return losses, objective.model


def test_fit_converges_on_a_toy() -> None:
    losses, model = train(TrainerConfig(epochs=60, batch_size=10, lr=0.05, schedule="cosine"))
    assert losses[0] > 1 and losses[-1] < 0.01
    torch.testing.assert_close(model.weight.detach(), torch.tensor([[1.0, -2.0, 0.5]]), atol=0.02, rtol=0)


def test_the_same_seed_gives_the_same_bits() -> None:
    trainer = TrainerConfig(epochs=3, batch_size=10)
    (first, a), (second, b) = train(trainer), train(trainer)
    assert first == second and torch.equal(a.weight, b.weight)


def test_a_loss_that_is_not_finite_stops_the_run_and_is_named() -> None:
    with pytest.raises(FloatingPointError, match="update 0, epoch 1: the decoder mae of group all"):
        train(TrainerConfig(epochs=3, batch_size=10), scale=float("nan"))


def test_learning_rate_warms_up_then_decays_to_zero() -> None:
    trainer = TrainerConfig(lr=1.0, schedule="cosine", warmup_steps=10)
    rates = [learning_rate(trainer, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == rates[9] and rates[99] < 1e-3
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert learning_rate(TrainerConfig(lr=0.5), 77, 100) == 0.5


def test_learning_rate_ends_at_a_share_as_published() -> None:
    """GR appendix C: cosine from 5e-4 to 5e-5, after 100 updates of warm-up."""
    trainer = TrainerConfig(lr=5e-4, schedule="cosine", warmup_steps=100, end_rate=0.1)
    for step in (0, 50, 99, 100, 2500, 4999, 5000):
        reference = 5e-5 + (5e-4 - 5e-5) * (1 + math.cos(math.pi * step / 5000)) / 2
        assert learning_rate(trainer, step, 5000) == pytest.approx(reference * min(1, (step + 1) / 100), rel=1e-12)
    assert learning_rate(trainer, 5000, 5000) == pytest.approx(5e-5)


def test_device_and_precision_are_resolved_or_refused() -> None:
    cpu = pick_device("cpu")
    assert pick_precision("float32", cpu) == "float32"
    assert pick_precision("auto", cpu) in ("float32", "bfloat16")
    with pytest.raises(UserError, match=r"trainer.precision=tf32: cpu does not support it"):
        pick_precision("tf32", cpu)
    with pytest.raises(UserError, match=r"trainer.device=nonsense"):
        pick_device("nonsense")


def test_modules_compute_in_the_precision_that_is_asked_for() -> None:
    layer, x, cpu = torch.nn.Linear(4, 4), torch.randn(2, 4), torch.device("cpu")
    for precision, kind, products in (
        ("float32", torch.float32, "highest"), ("tf32", torch.float32, "high"), ("bfloat16", torch.bfloat16, "highest")
    ):  # fmt: skip
        with computing(precision, cpu):
            assert layer(x).dtype == kind and torch.get_float32_matmul_precision() == products
        assert layer(x).dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest"


def test_batches_cover_every_point_once_also_by_group() -> None:
    groups = torch.tensor([0, 1, -1]).repeat(7)
    for index in (None, groups):
        found = list(batches(21, 4, torch.Generator().manual_seed(0), index))
        assert sorted(torch.cat(found).tolist()) == list(range(21)) and max(map(len, found)) == 4
    assert all(len(groups[batch].unique()) == 1 for batch in found)
    assert groups[torch.cat(found)].unique_consecutive().numel() > 3  # the groups' batches alternate
