"""The anchors of an audit: models that are known never to have learned the group, to hide it, or to hold it."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.config.build import from_mapping
from gradroute.config.components import ablated_regions, training_steps, with_steps
from gradroute.config.identity import to_mapping
from gradroute.config.schema import Config, NoiseConfig
from gradroute.models.adapters import adapters_in, merged
from gradroute.records.audits import CONTROL, FLOORS, LABELS, TWIN
from gradroute.routing import Region, Router
from gradroute.routing.ablation import together
from gradroute.tasks.base import Task, create
from gradroute.training.weights import read_weights

FOLDER = "audit_anchors"  # name of the experiment of anchors, so that all audits in an output folder share them
SEEDS = 2**32 - 1


@dataclass
class Anchor:
    """A model of an audit: its name, the model itself without routes, and the run that trained it, if it is another."""

    name: str
    model: nn.Module
    run: Path | None = None


def shares_of_groups(task: Task) -> dict[str, float]:
    """Return the share of the training points that each configured group has."""
    groups: torch.Tensor = task.train_groups  # type: ignore[attr-defined]  # tasks of images and documents have it
    return {name: float((groups == task.names.index(name)).float().mean()) for name in task.config.routing.groups}


def for_anchor(config: Config) -> Config:
    """Return a copy of a configuration that trains the same model and keeps it where all audits find it."""
    changed = with_steps(config, [*training_steps(config), "evaluate"])
    changed.name, changed.trained = FOLDER, None
    changed.seeds, changed.tracker, changed.completions, changed.plots = None, None, None, []
    changed.checkpoint.keep = "weights"
    return changed


def config_of(kind: str, config: Config, group: str, shares: Mapping[str, float]) -> Config:
    """Return the configuration of an anchor that is trained: the audited run's, with one change.

    Args:
        kind: one of `gradroute.records.audits.TRAINED`.
        shares: see `shares_of_groups`.
    """
    changed = for_anchor(config)
    routing = changed.routing
    if kind in (TWIN, *FLOORS):
        routing.left_out = [group]
    if kind in FLOORS:
        changed.seed = (config.seed + 1 + FLOORS.index(kind)) % SEEDS
    if kind == CONTROL:
        routing.routes = {}
    if kind == LABELS:
        scale = 1 / max(1.0, sum(shares.values()))
        routing.label_noise = {name: NoiseConfig(false_positive=share * scale) for name, share in shares.items()}
    return from_mapping(to_mapping(changed))


def ablated(task: Task) -> nn.Module:
    """Return a copy of the task's model, ablated as configured, without its routes."""
    (ablation,) = task.ablations()
    with ablation.applied(task.model) as model:
        return plain(model)


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of a model of which an attacker can train everything; adapters are added to the weights."""
    copied = merged(model) if adapters_in(model) else copy.deepcopy(model)
    return copied.requires_grad_(True).eval()


def trained(name: str, config: Config, run: Path, data: Any) -> Anchor:
    """Return the ablated model of a finished run. Raises: UserError if its weights do not fit."""
    task = create(config, data)
    read_weights(run, {"model": task.model})
    return Anchor(name, ablated(task), run)


def other_units(region: Region, total: int, seed: int) -> tuple[int, ...]:
    """Return as many units of the region's sites outside of it, drawn at random; fewer if there are not enough."""
    outside = sorted(set(range(total)) - set(region.units))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(outside), generator=generator)[: len(region.units)].tolist()
    return tuple(sorted(outside[place] for place in order))


class _Other:
    """What an ablation method needs of a task, with placebo regions in place of the task's own."""

    def __init__(self, task: Task, router: Router) -> None:
        self.config, self.router, self.task = task.config, router, task

    def router_of(self, region: str) -> Router:
        return self.router

    def activations(self, sites: Any) -> Mapping[str, torch.Tensor]:
        return self.task.activations(sites)

    def example(self) -> torch.Tensor:
        return self.task.example()


def placebo(task: Task) -> nn.Module | None:
    """Return a copy of the model with as many other units ablated; None for regions of parameters, which have none."""
    regions: dict[str, Region] = {}
    for name in ablated_regions(task.config):
        if name not in task.router.regions:
            return None
        region = task.router.regions[name]
        total = {task.router.found[site.name].activation.shape[site.axis] for site in region.sites}
        if len(total) > 1:
            return None
        first = region.sites[0]
        units = other_units(region, total.pop(), task.config.seed)
        if not units:
            return None
        regions[name] = Region([site.module for site in region.sites], list(units), first.axis, first.output)
    router = Router(task.model, regions, task.names, {}, task.example()[:1])
    method, other = task.ablation, _Other(task, router)
    with together([method.of(name, other) for name in regions]).applied(task.model) as model:
        return plain(model)


def intact(task: Task) -> nn.Module:
    """Return a copy of the task's model before the ablation, without its routes."""
    return plain(task.model)
