"""Compute one update's gradients of one objective, and make the update."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice

import torch
from torch import nn

from gradroute.config.schema import TrainerConfig
from gradroute.routing import Monitor, ParameterRouter
from gradroute.routing.cutting import cut
from gradroute.training import distributed
from gradroute.training.history import UpdateTerms
from gradroute.training.objectives import Batch, Objective, Part, Term, Terms
from gradroute.training.optimizers import make_optimizer, set_rates
from gradroute.training.shadows import Shadows, convertible, lowered

Computing = Callable[[], AbstractContextManager[None]]  # see `gradroute.training.devices`
Moments = dict[str, dict[str, torch.Tensor]]  # the optimizer's state, by the parameter's name


def shadows_of(objective: Objective, parameters: Mapping[str, nn.Parameter], computing: Computing) -> Shadows | None:
    """Return shadows of those of `parameters`, by the objective's names, that autocast converts; None without it."""
    device = next(iter(parameters.values())).device
    with computing():
        precision = lowered(device)
    names = [name for name in convertible(objective) if name in parameters] if precision else []
    return Shadows([parameters[name] for name in names], precision) if precision and names else None


def total(terms: Terms) -> torch.Tensor:
    """Return the sum of weight × value."""
    return torch.stack([value * weight for value, weight in terms.values()]).sum()


def backward(terms: Terms, router: ParameterRouter | None, kind: int | None = None) -> None:
    """Add the gradients of the sum of weight × value; with parameter routes, weigh each group's terms.

    `kind`: see `ParameterRouter.backward`.
    """
    if router is None:
        total(terms).backward()
        return
    losses: dict[str | None, torch.Tensor] = {}
    for term, (value, weight) in terms.items():
        if not value.requires_grad:  # only reported
            continue
        group = term.group if term.group in router.groups else None  # None: no group's route applies
        losses[group] = losses[group] + value * weight if group in losses else value * weight
    router.backward(losses, kind)


def finite(gradients: Sequence[torch.Tensor | None], device: torch.device, stacked: int = 0) -> torch.Tensor:
    """Return whether gradients are finite, `(1,)` bool or, for a stack, `(stacked,)`, judged by their first columns.

    If the gradient that arrives at a unit is not finite, no number in the row of its weights is. Checking all numbers
    took half as long as an update.
    """
    own = [g.reshape(stacked or 1, g.shape[1 if stacked else 0] if g.dim() > bool(stacked) else 1, -1)[..., 0]
           for g in gradients if g is not None]  # fmt: skip
    return torch.cat(own, 1).isfinite().all(1) if own else torch.ones(stacked or 1, dtype=torch.bool, device=device)


def culprit(objective: Objective, batch: Batch, parts: int, computing: Computing) -> Term | None:
    """Return the first term whose own gradient is not finite, for a batch in `parts` parts; slow."""
    parameters = list(objective.parameters())
    for part in objective.parts(batch, parts):
        with computing():
            terms: Terms = objective(*part)
        for term, (value, weight) in terms.items():
            if value.requires_grad:
                found = torch.autograd.grad(value * weight, parameters, retain_graph=True, allow_unused=True)
                if not all(bool(g.isfinite().all()) for g in found if g is not None):
                    return term
    return None


class Single:
    """The program of a single objective; `gradroute.training.stack.Stack` is that of several."""

    def __init__(
        self, objective: Objective, trainer: TrainerConfig, computing: Computing, router: ParameterRouter | None
    ) -> None:
        self.objective, self.computing, self.router = objective, computing, router
        self.terms, self.absent = tuple(objective.weights), frozenset[tuple[Term, int]]()
        self.accumulate = trainer.accumulate
        self.parameters = dict(objective.named_parameters())
        self.optimizer = make_optimizer([list(self.parameters.values())], [trainer])
        self.step: Callable[[], None] = self._step
        # parameter routes weigh and add float32 gradients of several passes
        self.shadows = None if router else shadows_of(objective, self.parameters, computing)

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of the next update."""
        set_rates(self.optimizer, rates)

    def gradients(self, data: Sequence[Batch]) -> UpdateTerms:
        """Fill the parameters' `.grad` from one batch, in parts that all processes share; return its terms."""
        self.optimizer.zero_grad()
        found: dict[Term, torch.Tensor] = {}
        monitor = self.objective.monitor if isinstance(self.objective.monitor, Monitor) else None
        parameters = list(self.parameters.values())
        mine, shares = distributed.share()
        parts = self._parts(data[0], shares)
        used = self.shadows.used() if self.shadows else nullcontext()
        with used, distributed.watching(monitor, parameters[0].device):
            for number, (part, kind) in enumerate(islice(parts, mine, None, shares)):
                if monitor:
                    monitor.continues = number > 0
                with self.computing():
                    terms: Terms = self.objective(*part)
                backward(terms, self.router, kind)
                for term, (value, _) in terms.items():
                    found[term] = found[term] + value.detach() if term in found else value.detach()
        if shares > 1:
            numbers = torch.stack([found.get(term, parameters[0].new_zeros(())) for term in self.terms])
            found = dict(zip(self.terms, distributed.add_up(parameters, numbers), strict=True))
        numbers = torch.stack(list(found.values()))[:, None]
        return UpdateTerms(tuple(found), numbers, finite([p.grad for p in parameters], numbers.device))

    def _parts(self, batch: Batch, shares: int) -> Iterator[tuple[Part, int | None]]:
        """Yield the parts of a batch with the kind of their groups' weights; cut by these, if that saves passes.

        Batches of a compiled model are not cut: the compiler would make a program for each size of a piece.
        """
        there, found = self.objective.there, None
        cuts = shares == 1 and self.objective.divisible and self.objective.program is None
        if self.router is not None and there is not None and cuts:
            found = cut(there, self.router.kinds, self.accumulate)
        if found is None:
            yield from ((part, None) for part in self.objective.parts(batch, self.accumulate * shares))
            return
        order = found.order.to(batch[0].device)
        parts = self.objective.parts(tuple(rows[order] for rows in batch), found.ends[:-1])
        yield from zip(parts, found.kinds, strict=True)

    def update(self) -> None:
        """Update the parameters, except what no group in the batch may touch."""
        with self.router.updating(self.optimizer) if self.router else nullcontext():
            self.step()

    def _step(self) -> None:
        """Update all parameters and the copies that training computes with; this may be compiled."""
        self.optimizer.step()
        if self.shadows:
            self.shadows.refresh()

    def moments(self) -> list[Moments]:
        """Return the optimizer's state of every parameter that it has updated."""
        known = self.optimizer.state
        return [{name: dict(known[p]) for name, p in self.parameters.items() if p in known}]

    def set_moments(self, given: Sequence[Moments]) -> None:
        """Restore what `moments` returned."""
        for name, state in given[0].items():
            self.optimizer.state[self.parameters[name]] = dict(state)
