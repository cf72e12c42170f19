"""DP-SGD in the training loop: clip every row's gradient, add noise, and account for it, by Opacus (`gradroute[dp]`).

Opacus' hooks give the gradient of every row, its optimizer clips their sum and adds noise, and its accountant says what
(epsilon, delta) follows (Abadi et al. 2016). Rows are drawn independently for every update, as the accountant assumes.

The guarantee is about one row of tokens: a person who is told in k rows has k times the epsilon, and a larger delta, by
group privacy. The tokenizer and the number of rows are taken as known. The noise is drawn from the run's seed, so that
a run can be made again: who knows the seed can subtract it, so keep it secret where the guarantee must hold.
"""

import importlib
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Annotated, Any

import torch
from torch import nn

from gradroute.config.limits import Between, require
from gradroute.config.schema import Config, TrainerConfig
from gradroute.config.targets import construct
from gradroute.errors import UserError
from gradroute.training import distributed
from gradroute.training.gradients import Computing, Single, total
from gradroute.training.history import UpdateTerms
from gradroute.training.objectives import Batch, Objective, Term

EXTRA = "pip install 'gradroute[dp]'"
SEEDS = 2**32  # of torch's generator on a CPU


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """The section `privacy`: what DP-SGD must guarantee, and how it clips.

    Attributes:
        epsilon: the guarantee that the whole training has to give; the noise follows. Null if `noise` is given.
        delta: the chance with which the guarantee may fail; less than 1 / rows makes sense.
        clip: largest L2 norm of a row's gradient, of its mean loss over the row's length.
        noise: standard deviation of the noise, as a multiple of `clip`; the epsilon follows.
    """

    epsilon: Annotated[float, Between(0.01, 10_000)] | None = 8.0
    delta: Annotated[float, Between(1e-12, 0.1)] = 1e-5
    clip: Annotated[float, Between(1e-6, 1e6)] = 1.0
    noise: Annotated[float, Between(0.01, 10_000)] | None = None


def privacy_of(config: Config) -> Privacy | None:
    """Return the section `privacy`, checked; None if there is none. Raises: UserError."""
    if config.privacy is None:
        return None
    made: Privacy = construct(Privacy, config.privacy, "privacy")
    one = (made.epsilon is None) != (made.noise is None)
    require(one, "privacy.noise", made.noise, "given if, and only if, privacy.epsilon is null")
    trainer, losses = config.trainer, config.losses
    penalised = [*losses.l1.values(), *losses.penalties]
    require(not any(penalised), "losses", penalised, "without penalties, which mix the rows, for privacy")
    routed = [name for name, region in config.routing.regions.items() if region.has_parameters]
    require(not routed, "routing.regions", routed, "without regions of parameters for privacy")
    require(not trainer.compile, "trainer.compile", trainer.compile, "false for privacy")
    require(trainer.batches == "mixed", "trainer.batches", trainer.batches, "mixed for privacy")
    precise = trainer.precision in ("float32", "tf32")
    require(precise, "trainer.precision", trainer.precision, "float32 or tf32 for privacy")
    opacus("accountants")
    return made


def opacus(module: str) -> ModuleType:
    """Import a module of Opacus. Raises: UserError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(f"opacus.{module}")
    except ImportError:
        raise UserError(f"privacy: needs the package opacus: {EXTRA}") from None


@dataclass(frozen=True)
class Spent:
    """What a training of a number of updates costs: the guarantee, and the noise that gives it."""

    epsilon: float
    delta: float
    noise: float


def spent(privacy: Privacy, points: int, trainer: TrainerConfig) -> Spent:
    """Return the guarantee of a training on `points` rows, and the noise multiplier that gives it (RDP accountant)."""
    accountants = opacus("accountants")
    rate, updates = min(1.0, trainer.batch_size / points), trainer.epochs * -(-points // trainer.batch_size)
    noise = privacy.noise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of orders at the end of its list, where the bound is still a bound
        if noise is None:
            noise = opacus("accountants.utils").get_noise_multiplier(
                target_epsilon=privacy.epsilon, target_delta=privacy.delta, sample_rate=rate, steps=updates
            )
        accountant = accountants.RDPAccountant()
        accountant.history = [(noise, rate, updates)]
        epsilon = float(accountant.get_epsilon(privacy.delta))
    return Spent(epsilon, privacy.delta, float(noise))


def drawn(points: int, size: int, generator: torch.Generator) -> Iterator[torch.Tensor]:
    """Yield the row numbers of an epoch's batches: every row is in each with probability size / points, independently.

    A batch without rows, of probability exp(-size), is drawn again.
    """
    for _ in range(-(-points // size)):
        rows = torch.empty(0)
        while not len(rows):
            rows = torch.nonzero(torch.rand(points, generator=generator) * points < size).flatten()
        yield rows


@contextmanager
def by_row(model: nn.Module) -> Iterator[None]:
    """Give every parameter the gradient of every row as `grad_sample`, `(rows, …)`, in passes inside the block."""
    module = opacus("grad_sample.grad_sample_module")
    hooks = module.GradSampleHooks(model, loss_reduction="sum")
    try:
        yield
    finally:
        hooks.remove_hooks()


@dataclass
class Noise:
    """What the training loop needs to know: how to clip, how much noise to add, and the update that it is for."""

    privacy: Privacy
    multiplier: float
    seed: int
    update: int = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of this update's noise, so that a run which is resumed draws the same."""
        return torch.Generator(device).manual_seed((self.seed * 1_000_003 + self.update * 7_919 + 17) % SEEDS)


class Private(Single):
    """The program of a single objective whose updates are those of DP-SGD."""

    def __init__(self, objective: Objective, trainer: TrainerConfig, computing: Computing, noise: Noise) -> None:
        super().__init__(objective, trainer, computing, None)
        self.shadows, self.noise = None, noise
        self.clipped: Any = opacus("optimizers").DPOptimizer(
            self.optimizer, noise_multiplier=noise.multiplier, max_grad_norm=noise.privacy.clip,
            expected_batch_size=trainer.batch_size, loss_reduction="mean",
        )  # fmt: skip

    def gradients(self, data: Sequence[Batch]) -> UpdateTerms:
        """Compute the gradient of every row of one batch, in parts; clip and sum them; return the batch's terms.

        Raises: UserError for a model whose parameters are used outside of layers that Opacus knows.
        """
        if distributed.size() > 1:
            raise UserError("privacy: torchrun would add the noise once for each process; run without torchrun")
        self.clipped.zero_grad()
        found: dict[Term, torch.Tensor] = {}
        parts = list(self.objective.parts(data[0], self.accumulate))
        for number, part in enumerate(parts):
            if number:
                self.clipped.zero_grad()
            with by_row(self.objective.model), self.computing():
                terms = self.objective(*part)
                (total(terms) * self.objective.row_scale(data[0])).backward()
            if lost := [name for name, p in self.parameters.items() if getattr(p, "grad_sample", None) is None]:
                raise _lost(lost)
            for term, (value, _) in terms.items():
                found[term] = found[term] + value.detach() if term in found else value.detach()
            if number < len(parts) - 1:
                self.clipped.signal_skip_step(do_skip=True)
                self.clipped.pre_step()
        numbers = torch.stack([found[term] for term in found])[:, None]
        sound = torch.stack([p.grad_sample.isfinite().all() for p in self.parameters.values()]).all()[None]  # type: ignore[attr-defined]
        return UpdateTerms(tuple(found), numbers, sound)

    def update(self) -> None:
        """Clip, add this update's noise, and update the parameters; then free the rows' gradients."""
        self.clipped.generator = self.noise.generator(next(iter(self.parameters.values())).device)
        self.clipped.signal_skip_step(do_skip=False)
        self.clipped.step()
        self.clipped.zero_grad()


def _lost(names: Sequence[str]) -> UserError:
    few = ", ".join(names[:3])
    fault = f"{len(names)} parameters, such as {few}, are used outside of layers that Opacus knows"
    return UserError(f"privacy: {fault}; use model=transformer with model.tied=false")


def try_privacy(objective: Objective, batch: Batch) -> None:
    """Raise UserError for an objective without rows, or parameters whose rows' gradients do not add up to theirs."""
    scale, parameters = objective.row_scale(batch), dict(objective.named_parameters())
    with by_row(objective.model):
        (total(objective(*batch)) * scale).backward()
    wrong = []
    for name, parameter in parameters.items():
        rows, summed = getattr(parameter, "grad_sample", None), parameter.grad
        if summed is not None and (rows is None or not _close(rows.sum(0), summed)):
            wrong.append(name)
        parameter.grad = parameter.grad_sample = None  # type: ignore[attr-defined]
    if wrong:
        raise _lost(wrong)


def _close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Return whether two gradients are equal to rounding."""
    return float((one - other).norm()) <= 1e-3 * float(other.norm()) + 1e-7
