"""Compute one update's gradients of several objectives at once, stacked into one batched program with `vmap`."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from gradroute.config.schema import TrainerConfig
from gradroute.routing import Monitor
from gradroute.routing.monitor import Watched
from gradroute.routing.router import Tables
from gradroute.training.gradients import Computing, Moments, finite, shadows_of, total
from gradroute.training.history import UpdateTerms
from gradroute.training.objectives import Batch, Objective, Term, Terms
from gradroute.training.optimizers import make_optimizer, set_rates


class Stack:
    """Several objectives of one shape as one batched program (`torch.func.vmap` over stacked parameters).

    The objectives' parameters become views of the stacked ones, so that each can be evaluated and saved as before. The
    objectives may differ in loss weights, in masks and in the optimizer's numbers.
    """

    def __init__(
        self, objectives: Sequence[Objective], trainers: Sequence[TrainerConfig], computing: Computing
    ) -> None:
        self.objectives, self.computing = list(objectives), computing
        named = [dict(objective.named_parameters()) for objective in objectives]
        self.parameters = {name: nn.Parameter(torch.stack([own[name].detach() for own in named])) for name in named[0]}
        for i, own in enumerate(named):
            for name, parameter in own.items():
                parameter.data = self.parameters[name].data[i]
        self.terms = tuple(dict.fromkeys(term for objective in objectives for term in objective.weights))
        self.absent = frozenset((t, i) for i, o in enumerate(objectives) for t in self.terms if t not in o.weights)
        like = next(iter(self.parameters.values()))
        self.weights = {  # a term that a task lacks has weight 0 there
            term: like.detach().new_tensor([o.weights.get(term, 0.0) for o in objectives]) for term in self.terms
        }
        alike = len({(t.lr, *t.betas, t.momentum, t.weight_decay) for t in trainers}) == 1
        self._slices: list[dict[str, nn.Parameter]] = []  # by task, if their optimizers' numbers differ
        if not alike:
            numbers = range(len(objectives))
            self._slices = [{k: nn.Parameter(p.data[i]) for k, p in self.parameters.items()} for i in numbers]
        groups = [list(own.values()) for own in self._slices or [self.parameters]]
        self.optimizer = make_optimizer(groups, trainers[: len(groups)])
        self.step: Callable[[], None] = self._step
        wide = {n: p for n, p in self.parameters.items() if p.dim() > 2}  # vmap adds biases in float32
        self.shadows = shadows_of(objectives[0], wide, computing) if wide else None
        if hasattr(objectives[0], "penalties"):  # the first objective computes those of all
            every = [getattr(objective, "penalties", {}) for objective in reversed(objectives)]
            setattr(objectives[0], "penalties", {term: p for own in every for term, p in own.items()})  # noqa: B010
        for module in objectives[0].modules():
            if hasattr(module, "fixed_shapes"):
                setattr(module, "fixed_shapes", True)  # noqa: B010

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the next update, one for each task."""
        set_rates(self.optimizer, rates)

    def gradients(self, data: Sequence[Batch]) -> UpdateTerms:
        """Fill the stacked parameters' `.grad` from one batch of each task; return their terms."""
        base = self.objectives[0]
        monitors = [o.monitor if isinstance(o.monitor, Monitor) else None for o in self.objectives]
        watched = Watched() if any(monitors) else None

        def one(
            parameters: Mapping[str, torch.Tensor], weights: dict[Term, torch.Tensor], tables: Tables, batch: Batch
        ) -> tuple[torch.Tensor, torch.Tensor, dict[Any, Batch]]:
            with base.set_to(weights, tables, watched):
                terms: Terms = functional_call(base, dict(parameters), batch)
            values = torch.stack([terms[term][0] for term in self.terms])
            return values, total(terms), dict(watched.seen) if watched else {}

        self.optimizer.zero_grad()
        stacked = tuple(torch.stack(parts) for parts in zip(*data, strict=True))
        tables = self._tables()
        with self.shadows.used() if self.shadows else nullcontext():
            with self.computing():
                values, losses, seen = vmap(one)(self.parameters, self.weights, tables, stacked)
            for task, monitor in enumerate(monitors):
                for site, (activation, branch, membership) in seen.items() if monitor else ():
                    assert monitor is not None
                    monitor.attach(site, activation, branch, membership[task], task)
            losses.sum().backward()
        sound = finite([p.grad for p in self.parameters.values()], losses.device, len(self.objectives))
        return UpdateTerms(self.terms, values.detach().T, sound)

    def _tables(self) -> Tables:
        """Return every site's weights and forward factors, stacked over tasks."""
        routers = [objective.router for objective in self.objectives]
        if routers[0] is None:
            return {}
        each = [router.tables() for router in routers if router is not None]
        weights, factors = ({site: torch.stack([own[site][k] for own in each]) for site in each[0]} for k in (0, 1))
        return {site: (weights[site], factors[site]) for site in weights}

    def update(self) -> None:
        """Update the parameters of every task."""
        for i, own in enumerate(self._slices):
            for name, parameter in own.items():
                gradient = self.parameters[name].grad
                parameter.grad = None if gradient is None else gradient[i]
        self.step()
        if self._slices:
            for parameter in self.parameters.values():
                parameter.grad = None

    def _step(self) -> None:
        """Update all parameters and the copies that training computes with; this may be compiled."""
        self.optimizer.step()
        if self.shadows:
            self.shadows.refresh()

    def moments(self) -> list[Moments]:
        """Return each task's part of the optimizer's state, as a task alone would have it."""
        known = self.optimizer.state
        if self._slices:
            return [{name: dict(known[p]) for name, p in own.items() if p in known} for own in self._slices]
        return [
            {  # cloned: saving a view would save the whole stack
                name: {k: v[i].clone() if v.dim() else v for k, v in known[p].items()}
                for name, p in self.parameters.items() if p in known
            }
            for i in range(len(self.objectives))
        ]  # fmt: skip

    def set_moments(self, given: Sequence[Moments]) -> None:
        """Restore what `moments` returned."""
        for number, own in enumerate(self._slices or [self.parameters]):
            each = [given[number]] if self._slices else list(given)
            for name, state in each[0].items():
                self.optimizer.state[own[name]] = {
                    k: v if self._slices or not v.dim() else torch.stack([g[name][k] for g in each])
                    for k, v in state.items()
                }
