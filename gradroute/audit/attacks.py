"""The attacks of an audit: relearn, calibrate, round, add noise. Every anchor gets the same of each.

A trained attack starts from fresh optimizer state, and every rate is tried; the one that the attacker would choose has
the lowest validation loss over the whole curve. A rate at which a loss is not finite, or ends higher than it began, is
*diverged*: it is counted, and not chosen unless all are.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from gradroute.audit.material import FORGET, RETAIN, TEST, VALIDATION, Batch, Material
from gradroute.audit.measures import area
from gradroute.audit.units import Biased, restored
from gradroute.models.exported import whole_numbers

Curve = list[tuple[int, float]]  # update and loss
CALIBRATION = (0.03, 0.003)  # first and last learning rate of the bias, falling linearly (SGTM: 0.01 to 0.001)
CALIBRATED_RETAIN = 1.0  # weight of the other points' loss: the bias must serve both


@dataclass(frozen=True)
class Budget:
    """What every anchor is attacked with.

    Attributes:
        updates: of each training. batch: training points in an update, at most. rates: learning rates, absolute.
    """

    updates: int
    batch: int
    rates: tuple[float, ...]

    def read_at(self) -> list[int]:
        """Return the updates after which losses are measured: 0, 1, 2, 4 and so on, and the last."""
        powers = [2**n for n in range(self.updates.bit_length())]
        return sorted({0, self.updates, *(n for n in powers if n < self.updates)})


@dataclass
class Attempt:
    """A trained attack at one learning rate: validation and test losses of the group at the same updates."""

    rate: float
    validation: Curve = field(default_factory=list)
    test: Curve = field(default_factory=list)
    retain: float = math.nan  # after the last update, on the other points' test data

    @property
    def diverged(self) -> bool:
        """Whether a loss is not finite, or the validation loss ends higher than it began."""
        losses = [loss for _, loss in self.validation]
        return not all(map(math.isfinite, losses)) or losses[-1] > losses[0]


def chosen(attempts: Sequence[Attempt]) -> Attempt:
    """Return the attempt with the lowest validation loss over its curve, of those that have not diverged.

    If all have, which means that no rate lowers the loss, the least harmful one counts: an attacker would stop there.
    """
    finite = [a for a in attempts if all(math.isfinite(loss) for _, loss in a.validation)]
    own = [a for a in attempts if not a.diverged] or finite or list(attempts)
    return min(own, key=lambda attempt: area(attempt.validation))


def drawn(count: int, size: int, updates: int, seed: int) -> list[list[int]]:
    """Return which of `count` points are in each update's batch: all in turn, in a random order of every pass."""
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    found = []
    for _ in range(updates):
        while len(queue) < min(size, count):
            queue += torch.randperm(count, generator=generator).tolist()
        found.append(sorted(set(queue[:size])) if size >= count else queue[:size])
        queue = queue[min(size, count) :]
    return found


class Points(Protocol):
    """Training points of an attack: the material's own, or foreign ones. `seed`: of the choices."""

    seed: int

    def chosen(self, kind: str, count: int, sample: int) -> list[int]:
        """Return numbers of points, a random choice by its number."""
        ...

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return points as the arguments of the material's `loss`."""
        ...


def prepared(material: Points, kind: str, count: int, sample: int, budget: Budget) -> list[Batch]:
    """Return the batches of an attack on `count` training points of a kind, one per update, for all anchors."""
    numbers = material.chosen(kind, count, sample)
    if budget.batch >= len(numbers):
        return [material.batch(numbers)] * budget.updates
    plan = drawn(len(numbers), budget.batch, budget.updates, material.seed * 1000 + sample)
    return [material.batch([numbers[place] for place in places]) for places in plan]


def train(
    parameters: Sequence[nn.Parameter], loss: Callable[[int], torch.Tensor], rate: Callable[[int], float], updates: int,
    after: Callable[[int], bool] = lambda update: True,
) -> bool:  # fmt: skip
    """Make updates by Adam from fresh state, without weight decay; return whether all losses were finite.

    Args:
        loss: the loss at an update, from 0. rate: its learning rate.
        after: called with the number of updates made; returns whether to go on.
    """
    optimizer = torch.optim.Adam(parameters, lr=rate(0))
    for update in range(updates):
        optimizer.param_groups[0]["lr"] = rate(update)
        optimizer.zero_grad(set_to_none=True)
        value = loss(update)
        if not bool(value.isfinite()):
            return False
        value.backward()
        optimizer.step()
        if not after(update + 1):
            break
    return True


def constant(rate: float) -> Callable[[int], float]:
    """Return a schedule that has one rate at all updates."""
    return lambda update: rate


def attempt(material: Material, model: nn.Module, batches: Sequence[Batch], rate: float, budget: Budget) -> Attempt:
    """Train the model on batches at one rate, and measure the group's losses on the way; the model is restored."""
    found, due = Attempt(rate), set(budget.read_at())

    def read(update: int) -> bool:
        if update in due:
            found.validation.append((update, material.measure(model, FORGET, VALIDATION)))
            found.test.append((update, material.measure(model, FORGET, TEST)))
        return True

    with restored(model):
        model.eval()
        read(0)
        parameters = [p for p in model.parameters() if p.requires_grad]
        train(parameters, lambda n: material.loss(model, batches[n]), constant(rate), budget.updates, read)
        reached = {update for update, _ in found.validation}
        lost = [(update, math.nan) for update in sorted(due - reached)]
        found.validation, found.test = found.validation + lost, found.test + lost
        found.retain = math.nan if lost else material.measure(model, RETAIN, TEST)
    model.zero_grad(set_to_none=True)
    return found


def calibrated(material: Material, model: nn.Module, points: int, updates: int, batch: int) -> Biased:
    """Return the model with a bias on its outputs, trained on the group's and on as many other training points.

    It lowers a loss that is high only because the outputs' prior is wrong (SGTM App. I.2).
    """
    biased = material.biased(model)
    budget = Budget(updates, batch, ())
    pairs = [prepared(material, kind, points, 0, budget) for kind in (FORGET, RETAIN)]
    first, last = CALIBRATION

    def loss(update: int) -> torch.Tensor:
        forget, retain = (material.loss(biased, batches[update]) for batches in pairs)
        return forget + CALIBRATED_RETAIN * retain

    train([biased.bias], loss, lambda n: first + (last - first) * n / max(1, updates - 1), updates)
    return biased


@torch.no_grad()
def rounded(model: nn.Module, bits: int) -> None:
    """Round every matrix of the model in place to `bits` bits, one scale per row, as an export with these bits does."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            numbers, scale = whole_numbers(parameter.flatten(1), bits)
            parameter.copy_((numbers * scale).view_as(parameter))


@torch.no_grad()
def shaken(model: nn.Module, size: float, seed: int) -> None:
    """Add normal noise to every matrix of the model in place, `size` times the matrix's own standard deviation."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator).to(parameter.device)
            parameter.add_(noise * (size * parameter.std()))


def changed(material: Material, model: nn.Module, changes: Sequence[Callable[[nn.Module], None]]) -> list[float]:
    """Return the group's test losses, by fold, under the change with the lowest validation loss; restores the model."""
    best, found = math.inf, list[float]()
    for change in changes:
        with restored(model):
            change(model)
            validation = material.measure(model, FORGET, VALIDATION)
            if validation < best or not found:
                best, found = validation, material.each(model, FORGET, TEST)
    return found


def suppress(
    material: Material, model: nn.Module, target: float, budget: Budget, retain: float, tolerance: float
) -> tuple[bool, int, float]:
    """Train a model in place only to hide the group, until its validation loss on it is `target`.

    The group's loss is led to the target while training on the other points: gradient difference, with a bound. Rates
    are tried from the lowest; the first that reaches the target within the updates counts.

    Args:
        retain: weight of the loss on the other points. tolerance: how near to the target is enough, in units of loss.

    Returns: whether the target was reached, the updates made, and the rate.
    """
    pairs = [prepared(material, kind, min(64, len(material.own)), 0, budget) for kind in (FORGET, RETAIN)]
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.eval()
    for rate in sorted(budget.rates):
        made = 0

        def loss(update: int) -> torch.Tensor:
            forget, others = (material.loss(model, batches[update]) for batches in pairs)
            return (target + tolerance / 2 - forget).abs() + retain * others

        def after(update: int) -> bool:
            nonlocal made
            made = update
            return not target <= material.measure(model, FORGET, VALIDATION) <= target + tolerance

        train([p for p in model.parameters() if p.requires_grad], loss, constant(rate), budget.updates, after)
        model.zero_grad(set_to_none=True)
        reached = material.measure(model, FORGET, VALIDATION)
        if target <= reached <= target + tolerance:
            return True, made, rate
        model.load_state_dict(kept)
    return False, 0, math.nan
