"""How one update's gradients are made: of one objective, or of several stacked into one batched program."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import islice
from typing import Any

import torch
from torch import nn
from torch.func import functional_call, vmap

from gradroute.config.schema import TrainerConfig
from gradroute.routing import Monitor, ParameterRouter
from gradroute.routing.monitor import Watched
from gradroute.routing.router import Tables
from gradroute.training import distributed
from gradroute.training.history import Values
from gradroute.training.objectives import Batch, Objective, Term, Terms

Computing = Callable[[], AbstractContextManager[None]]  # see `gradroute.training.devices`
Moments = dict[str, dict[str, torch.Tensor]]  # the optimizer's state, by the parameter's name


def _optimizer(groups: Sequence[list[nn.Parameter]], trainers: Sequence[TrainerConfig]) -> torch.optim.Optimizer:
    kind = trainers[0].optimizer
    settings = [
        {"params": group, "lr": t.lr, "weight_decay": t.weight_decay}
        | ({"momentum": t.momentum} if kind == "sgd" else {"betas": (t.betas[0], t.betas[1])})
        for group, t in zip(groups, trainers, strict=True)
    ]
    if kind == "sgd":
        return torch.optim.SGD(settings, fused=True)
    if kind == "adamw":
        return torch.optim.AdamW(settings, fused=True)
    return torch.optim.Adam(settings, fused=True)


def total(terms: Terms) -> torch.Tensor:
    """The sum of weight × value."""
    return torch.stack([value * weight for value, weight in terms.values()]).sum()


def backward(terms: Terms, router: ParameterRouter | None) -> None:
    """Add the gradients of the sum of weight × value; with parameter routes, each group's terms by its own weights."""
    if router is None:
        total(terms).backward()
        return
    losses: dict[str | None, torch.Tensor] = {}
    for term, (value, weight) in terms.items():
        group = term.group if term.group in router.groups else None  # None: what no group's route applies to
        losses[group] = losses[group] + value * weight if group in losses else value * weight
    router.backward(losses)


def _probe(gradients: Sequence[torch.Tensor | None], stacked: int = 0) -> torch.Tensor:
    """Whether gradients are finite, by their first column, `(1,)` or, of a stack, `(stacked,)`.

    Where the gradient that arrives at a unit is not, neither is any number in the row of its weights; looking at all
    of them took as long as half an update.
    """
    own = [g.reshape(stacked or 1, g.shape[1 if stacked else 0] if g.dim() > bool(stacked) else 1, -1)[..., 0]
           for g in gradients if g is not None]  # fmt: skip
    return torch.cat(own, 1).isfinite().all(1) if own else torch.ones(stacked or 1, dtype=torch.bool)


def culprit(objective: Objective, batch: Batch, parts: int, computing: Computing) -> Term | None:
    """The first term whose gradient alone is not finite, of a batch taken in so many parts; slow."""
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
    """One objective, as it is."""

    def __init__(
        self, objective: Objective, trainer: TrainerConfig, computing: Computing, router: ParameterRouter | None
    ) -> None:
        self.objective, self.computing, self.router = objective, computing, router
        self.terms, self.absent = tuple(objective.weights), frozenset[tuple[Term, int]]()
        self.accumulate = trainer.accumulate
        self.parameters = dict(objective.named_parameters())
        self.optimizer = _optimizer([list(self.parameters.values())], [trainer])

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rate of the next update."""
        self.optimizer.param_groups[0]["lr"] = rates[0]

    def gradients(self, data: Sequence[Batch]) -> Values:
        """Fill the parameters' `.grad` from one batch, in parts, those of all processes; returns its terms."""
        self.optimizer.zero_grad()
        found: dict[Term, torch.Tensor] = {}
        monitor = self.objective.monitor if isinstance(self.objective.monitor, Monitor) else None
        parameters = list(self.parameters.values())
        mine, shares = distributed.share()
        parts = self.objective.parts(data[0], self.accumulate * shares)
        with distributed.watching(monitor, parameters[0].device):
            for number, part in enumerate(islice(parts, mine, None, shares)):
                if monitor:
                    monitor.continues = number > 0
                with self.computing():
                    terms: Terms = self.objective(*part)
                backward(terms, self.router)
                for term, (value, _) in terms.items():
                    found[term] = found[term] + value.detach() if term in found else value.detach()
        if shares > 1:
            numbers = torch.stack([found.get(term, parameters[0].new_zeros(())) for term in self.terms])
            found = dict(zip(self.terms, distributed.add_up(parameters, numbers), strict=True))
        numbers = torch.stack(list(found.values()))[:, None]
        return Values(tuple(found), numbers, _probe([p.grad for p in parameters]))

    def update(self) -> None:
        """Move the parameters; what no group present may touch stays."""
        with self.router.updating(self.optimizer) if self.router else nullcontext():
            self.optimizer.step()

    def moments(self) -> list[Moments]:
        """The optimizer's state of every parameter that it has moved."""
        known = self.optimizer.state
        return [{name: dict(known[p]) for name, p in self.parameters.items() if p in known}]

    def set_moments(self, given: Sequence[Moments]) -> None:
        """Go on from what `moments` gave."""
        for name, state in given[0].items():
            self.optimizer.state[self.parameters[name]] = dict(state)


class Stack:
    """Several objectives of one shape as one batched program (`torch.func.vmap` over stacked parameters).

    The objectives' modules keep their parameters, which from now on are views of the stacked ones, so that each can be
    evaluated and saved as ever. They may differ in weights of losses, in masks and in the optimizer's numbers.
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
        self.weights = {  # a term that a task does not have weighs nothing there
            term: like.detach().new_tensor([o.weights.get(term, 0.0) for o in objectives]) for term in self.terms
        }
        alike = len({(t.lr, *t.betas, t.momentum, t.weight_decay) for t in trainers}) == 1
        self._slices: list[dict[str, nn.Parameter]] = []  # by task, where their optimizers' numbers differ
        if not alike:
            numbers = range(len(objectives))
            self._slices = [{k: nn.Parameter(p.data[i]) for k, p in self.parameters.items()} for i in numbers]
        groups = [list(own.values()) for own in self._slices or [self.parameters]]
        self.optimizer = _optimizer(groups, trainers[: len(groups)])
        for module in objectives[0].modules():
            if hasattr(module, "fixed_shapes"):
                setattr(module, "fixed_shapes", True)  # noqa: B010

    def set_rates(self, rates: Sequence[float]) -> None:
        """Set the learning rates of the next update, one for each task."""
        for group, rate in zip(self.optimizer.param_groups, rates, strict=False):
            group["lr"] = rate

    def gradients(self, data: Sequence[Batch]) -> Values:
        """Fill the stacked parameters' `.grad` from one batch of each task; returns their terms."""
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
        with self.computing():
            values, losses, seen = vmap(one)(self.parameters, self.weights, tables, stacked)
        for task, monitor in enumerate(monitors):
            for site, (activation, branch, membership) in seen.items() if monitor else ():
                assert monitor is not None
                monitor.attach(site, activation, branch, membership[task], task)
        losses.sum().backward()
        sound = _probe([p.grad for p in self.parameters.values()], len(self.objectives))
        return Values(self.terms, values.detach().T, sound)

    def _tables(self) -> Tables:
        """Every site's weights and forward factors, stacked over tasks."""
        routers = [objective.router for objective in self.objectives]
        if routers[0] is None:
            return {}
        each = [router.tables() for router in routers if router is not None]
        weights, factors = ({site: torch.stack([own[site][k] for own in each]) for site in each[0]} for k in (0, 1))
        return {site: (weights[site], factors[site]) for site in weights}

    def update(self) -> None:
        """Move the parameters of every task."""
        for i, own in enumerate(self._slices):
            for name, parameter in own.items():
                gradient = self.parameters[name].grad
                parameter.grad = None if gradient is None else gradient[i]
        self.optimizer.step()
        if self._slices:
            for parameter in self.parameters.values():
                parameter.grad = None

    def moments(self) -> list[Moments]:
        """Each task's part of the optimizer's state, as a task alone would have it."""
        known = self.optimizer.state
        if self._slices:
            return [{name: dict(known[p]) for name, p in own.items() if p in known} for own in self._slices]
        return [
            {  # cloned: a saved view would bring the whole stack along
                name: {k: v[i].clone() if v.dim() else v for k, v in known[p].items()}
                for name, p in self.parameters.items() if p in known
            }
            for i in range(len(self.objectives))
        ]  # fmt: skip

    def set_moments(self, given: Sequence[Moments]) -> None:
        """Go on from what `moments` gave."""
        for number, own in enumerate(self._slices or [self.parameters]):
            each = [given[number]] if self._slices else list(given)
            for name, state in each[0].items():
                self.optimizer.state[own[name]] = {
                    k: v if self._slices or not v.dim() else torch.stack([g[name][k] for g in each])
                    for k, v in state.items()
                }
