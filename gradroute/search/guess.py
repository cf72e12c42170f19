"""Guess the regions cheaply: from the units that each group uses in one unrouted run."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gradroute.config.overrides import literal
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.routing.routes import read_routes
from gradroute.routing.sites import observed
from gradroute.search.found import unrouted
from gradroute.search.space import Overrides
from gradroute.tasks.base import Task, create
from gradroute.training.weights import read_weights

POINTS = 512  # data points of each group


def guess(config: Config, run: Path, by: str, placebos: int, seed: int) -> tuple[Overrides, list[Overrides]]:
    """Guess regions for the routes of `config` from the `run` of its `unrouted` form; return them and placebos.

    Each unit goes to the region whose groups prefer it most. A preference is the unit's share of all activity of these
    groups at the site, minus its share for the other groups. Activity is the mean |activation| (`by` activation) or the
    mean |gradient| of the task loss (gradient). A placebo has the same number of units per region, drawn at random.

    Raises: UserError unless two or more regions at one site have different routes.
    """
    task = create(unrouted(config))
    read_weights(run, {"model": task.model})
    owners = _owners(config)
    sites = {name: task.router.regions[name].sites for name in owners}
    if len(owners) < 2 or len(set(sites.values())) > 1:
        raise UserError("search.guess: needs several regions of the same sites with different routes; set it to null")
    units = sorted({unit for name in owners for unit in task.router.regions[name].units})
    used = {group: _shares(task, number, by, next(iter(owners)))[units] for number, group in enumerate(task.names)}
    others = {name: [group for group in used if group not in groups] for name, groups in owners.items()}
    liking = torch.stack([_mean(used, groups) - _mean(used, others[name]) for name, groups in owners.items()])
    return _overrides(list(owners), units, liking, placebos, seed)


def _owners(config: Config) -> dict[str, list[str]]:
    """Return the groups that own each region of activations: those with the highest weight, unless all have it."""
    routing, groups = config.routing, list(config.routing.groups)
    weights = {key: route.weight for key, route in read_routes(routing.routes, groups, routing.regions).items()}
    found = {}
    for name, region in routing.regions.items():
        mine = {group: weights.get((group, name), 1.0) for group in groups}
        owners = [group for group in groups if mine[group] == max(mine.values())]
        if not region.has_parameters and len(owners) < len(groups):
            found[name] = owners
    return found


def _mean(used: Mapping[str, torch.Tensor], groups: list[str]) -> torch.Tensor:
    return torch.stack([used[group] for group in groups]).mean(0)


def _shares(task: Task, group: int, by: str, region: str) -> torch.Tensor:
    """Return each unit's share of a group's activity, or gradient, at a region's sites, `(units,)`."""
    own = (task.routed == group).flatten(1).any(1) if task.routed.dim() > 1 else task.routed == group
    rows = torch.nonzero(own).flatten()[:POINTS]
    sites = task.router.regions[region].sites
    objective, batch = task.objective(), task.batch(rows)
    whole = replace(task.config.trainer, batch_size=len(rows), accumulate=1)
    summed = torch.zeros(())
    for part in objective.parts(batch, task.fitted(whole, len(rows)).accumulate):
        with observed(task.model, sites) as seen:
            terms: Mapping[Any, Any] = objective(*part)
        found = activations = [seen[site.name] for site in sites]
        if by == "gradient":
            terms_of_task = [
                weight * value for term, (value, weight) in terms.items() if term.head not in ("certificate", "penalty")
            ]
            found = list(torch.autograd.grad(torch.stack(terms_of_task).sum(), activations))
        means = [s.units_last(v).detach().float().abs().flatten(0, -2).mean(0)
                 for s, v in zip(sites, found, strict=True)]  # fmt: skip
        summed = summed.to(means[0].device) + torch.stack(means).mean(0) * (len(part[0]) / len(rows))
    return summed / summed.sum().clamp(min=1e-12)


def _overrides(
    names: list[str], units: list[int], liking: torch.Tensor, placebos: int, seed: int
) -> tuple[Overrides, list[Overrides]]:
    """Return the guess and the placebos; a region without any unit gets the one that its groups prefer most."""
    chosen = liking.argmax(0)
    for number in range(len(names)):
        if not bool((chosen == number).any()):
            chosen[liking[number].argmax()] = number

    def written(owner: torch.Tensor) -> Overrides:
        parts = {
            name: [u for u, o in zip(units, owner.tolist(), strict=True) if o == i] for i, name in enumerate(names)
        }
        return [f"routing.regions.{name}.units={literal(part)}" for name, part in parts.items()]

    generator = torch.Generator().manual_seed(seed)
    drawn = [chosen[torch.randperm(len(units), generator=generator)] for _ in range(placebos)]
    return written(chosen), [written(owner) for owner in drawn]
