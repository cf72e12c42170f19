"""Ablate a region of a model from outside, and restore the model afterwards."""

import copy
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing import ParameterRouter, Region, Router, Site
from gradroute.routing.expansion import Layer, contract, removed
from gradroute.routing.hooks import hooked
from gradroute.routing.sites import by_module

LARGE = 10**8  # parameters of a model of which no copy should stay longer than needed

Applied = Callable[[nn.Module], AbstractContextManager[nn.Module]]


@dataclass(frozen=True)
class Ablation:
    """An ablation of the region called `name`.

    `applied(model)` is a context manager that yields the ablated model: `model` itself, changed inside the block and
    restored to the bit afterwards, or a smaller copy. Contexts nest, so ablations compose; see `together`.
    """

    name: str
    applied: Applied


def together(ablations: list[Ablation]) -> Ablation:
    """Combine several ablations into one, named `a+b`."""

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        with ExitStack() as stack:
            for ablation in ablations:
                model = stack.enter_context(ablation.applied(model))
            yield model

    return Ablation("+".join(ablation.name for ablation in ablations), applied)


def without(name: str, drop: Callable[[nn.Module], None]) -> Ablation:
    """Return the ablation that yields a copy of the model, of which `drop` has deleted the region."""

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        smaller = copy.deepcopy(model)
        drop(smaller)
        yield smaller

    return Ablation(name, applied)


def replaced(region: Region, values: Callable[[Site, torch.Tensor], torch.Tensor]) -> Applied:
    """Return a context that replaces the region's activations `(batch, …, units)` at every site by `values`."""

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        def hook(sites: list[Site]) -> Callable[[nn.Module, Any, Any], Any]:
            def replace(module: nn.Module, inputs: Any, output: Any) -> Any:
                for site in sites:
                    activation = site.read(output).clone()
                    site.units_last(activation)[..., list(region.units)] = values(site, activation).to(activation.dtype)
                    output = site.replace(output, activation)
                return output

            return replace

        with hooked(model, {module: hook(sites) for module, sites in by_module(region.sites).items()}):
            yield model

    return applied


def zero(name: str, router: Router | ParameterRouter) -> Ablation:
    """Ablate by setting the region's activations, or its parameters, to 0 (SGTM's removal)."""
    if isinstance(router, ParameterRouter):
        return Ablation(name, overwritten(router, name, lambda parameter, module: torch.zeros_like(parameter)))
    return Ablation(name, replaced(router.regions[name], lambda site, activation: torch.zeros(())))


def mean(name: str, router: Router, activations: Mapping[str, torch.Tensor]) -> Ablation:
    """Ablate by replacing each unit by its mean over data and positions in `activations`, by site name."""
    region = router.regions[name]
    means = {site.name: region.at(activations[site.name], site).flatten(0, -2).mean(0) for site in region.sites}
    return Ablation(name, replaced(region, lambda site, activation: means[site.name].to(activation.device)))


def resample(name: str, router: Router, activations: Mapping[str, torch.Tensor], seed: int) -> Ablation:
    """Ablate by replacing activations by those of data points drawn with replacement from `activations`.

    `activations` are by site name. All sites of one forward pass take the same points, and every use of the ablation
    draws the same sequence.
    Raises: UserError in the forward pass if shapes differ in another axis than the batch.
    """
    region = router.regions[name]
    bank = {site.name: region.at(activations[site.name], site) for site in region.sites}

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        draws = {site: torch.Generator().manual_seed(seed) for site in region.sites}

        def values(site: Site, activation: torch.Tensor) -> torch.Tensor:
            here, stored = region.at(activation, site), bank[site.name]
            if here.shape[1:] != stored.shape[1:]:
                shapes = f"{tuple(here.shape[1:])}, stored ones {tuple(stored.shape[1:])}"
                raise UserError(f"resample: activations at '{site.name}' have shape {shapes}; use data of one shape")
            rows = torch.randint(len(stored), (len(here),), generator=draws[site])
            return stored[rows.to(stored.device)].to(activation.device)

        with replaced(region, values)(model) as ablated:
            yield ablated

    return Ablation(name, applied)


def reinitialise(name: str, router: Router | ParameterRouter, seed: int) -> Ablation:
    """Ablate by drawing the region's parameters anew, with their modules' `reset_parameters`.

    These are rows of the layer that makes the region's units, or the slices of a parameter region. They are drawn on
    the CPU, so that a model on a GPU gets the same ones and the ablation can be repeated elsewhere.
    Raises: UserError when applied if no such layer was found, or a module has no `reset_parameters`.
    """

    def fresh(parameter: nn.Parameter, module: nn.Module) -> torch.Tensor:
        twin: Any = copy.deepcopy(module).cpu()
        if not hasattr(twin, "reset_parameters"):
            raise UserError(f"reinitialise '{name}': a {type(module).__name__} has no reset_parameters; add it")
        own = next(key for key, value in module.named_parameters(recurse=False) if value is parameter)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            twin.reset_parameters()
        drawn: torch.Tensor = twin.get_parameter(own).detach()
        return drawn.to(parameter.device)

    return Ablation(name, overwritten(router, name, fresh))


def remove(name: str, router: Router, example: torch.Tensor) -> Ablation:
    """Ablate by removing the region's units from a smaller copy of the model, checked on `example`.

    A model that knows the layers around a site says so in a method `layer_at(site)`; for others they are found.
    """
    region = router.regions[name]

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        smaller = model
        for site in region.sites:
            before = smaller
            layer = smaller.layer_at(site.module) if hasattr(smaller, "layer_at") else None  # type: ignore[operator]
            if layer is None:
                smaller = removed(smaller, site.module, region.units, example)
            else:
                smaller = copy.deepcopy(model) if smaller is model else smaller  # one copy for all its sites
                contract_features(smaller, layer, region.units, f"region '{name}'")
            if smaller is not before and sum(p.numel() for p in smaller.parameters()) > LARGE:
                gc.collect()  # earlier copies, as transformers' models are in reference cycles
        yield smaller

    return Ablation(name, applied)


def contract_features(model: nn.Module, layer: Layer, features: Sequence[int], where: str) -> None:
    """Remove these features of a layer in place. Raises: UserError, before any change, unless they are whole units."""
    units = sorted({feature // layer.width for feature in features})
    if len(features) != len(units) * layer.width:
        raise UserError(f"{where}: only whole heads of {layer.width} units can be removed; ablate it by zero or mean")
    contract(model, layer, units)


def overwritten(
    router: Router | ParameterRouter, name: str, values: Callable[[nn.Parameter, nn.Module], torch.Tensor]
) -> Applied:
    """Return a context that sets a region's parameters to `values(parameter, module)`, of the parameter's shape."""

    @contextmanager
    def applied(model: nn.Module) -> Iterator[nn.Module]:
        parts = router.parts(name)
        if not parts:
            raise UserError(f"region '{name}': the layer that makes its units was not found; ablate it by zero or mean")
        modules = {p: module for module in model.modules() for p in module.parameters(recurse=False)}
        kept = {parameter: parameter.detach().clone() for parameter in parts}
        try:
            for parameter, mask in parts.items():
                new = values(parameter, modules[parameter])
                parameter.data.copy_(torch.where(mask.to(parameter.device), new, parameter.detach()))
            yield model
        finally:
            for parameter, before in kept.items():
                parameter.data.copy_(before)

    return applied
