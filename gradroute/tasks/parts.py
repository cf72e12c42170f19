"""Assemble a run's untrained modules: the model, its routes, and one certificate per certified region."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.config.compensation import weights_of
from gradroute.config.schema import LossesConfig, RoutingConfig
from gradroute.errors import UserError
from gradroute.models.adapters import region_of_adapter
from gradroute.models.base import certificate_of
from gradroute.models.beside import beside_parameters, beside_region, outside_modules
from gradroute.models.layer_parts import parameters_of, region_of
from gradroute.routing import ParameterRegion, ParameterRouter, Region, Router

Regions = tuple[dict[str, Region], dict[str, ParameterRegion]]


def read_regions(routing: RoutingConfig, model: nn.Module) -> Regions:
    """Return a model's configured regions of activations and those of parameters, by name. Raises: UserError."""
    activations: dict[str, Region] = {}
    parameters: dict[str, ParameterRegion] = {}
    for name, region in routing.regions.items():
        if region.has_parameters:
            continue
        where = f"routing.regions.{name}"
        if region.module is not None:
            activations[name] = beside_region(model, region.module, where)
            parameters[name] = beside_parameters(model, region.module)
        elif region.part is not None:
            activations[name] = region_of(model, where, region.part, region.layers, region.units)
        else:
            axis = -1 if region.axis is None else region.axis
            activations[name] = Region(region.site, region.units, axis, region.output)
    for name, region in routing.regions.items():
        if region.parameters is not None:
            outside: dict[str, tuple[int, tuple[int, ...]]] = {}
            named, kept = region.parameters, region.outside or []
            if modules := [str(routing.regions[other].module) for other in kept if routing.regions[other].module]:
                named = outside_modules(model, named, modules, f"parameter of region '{name}':")
            for other in [other for other in kept if routing.regions[other].module is None]:
                found = parameters_of(model, activations[other], f"routing.regions.{name}.outside={other}")
                for key, (axis_of, units) in found.items():
                    before = outside.get(key, (axis_of, ()))[1]
                    outside[key] = (axis_of, tuple(sorted({*before, *units})))
            parameters[name] = ParameterRegion(named, region.axis or 0, outside)
        if region.adapter is not None:
            parameters[name] = region_of_adapter(model, region.adapter, f"routing.regions.{name}")
    return activations, parameters


@dataclass
class Parts:
    """The modules of a run and the routes on its model. `outputs` is the number of outputs of a certificate."""

    model: nn.Module
    certificates: nn.ModuleDict
    router: Router
    parameter_router: ParameterRouter
    outputs: int = 0

    def certificate(self, region: str) -> nn.Module:
        """Return an untrained certificate that fits the region's activations on the example."""
        found = {name: site.activation for name, site in self.router.found.items()}
        seen = self.router.regions[region].select(found)
        return certificate_of(self.model, seen.shape[1:], self.outputs).to(seen.device)


def routers(
    model: nn.Module, routing: RoutingConfig, groups: Sequence[str], example: torch.Tensor
) -> tuple[Router, ParameterRouter]:
    """Return a model's routers of activations and of parameters. Raises: UserError for routes that do not fit."""
    regions, parameters = read_regions(routing, model)
    mine, others = (
        {g: {r: row[r] for r in row if r in kind} for g, row in weights_of(routing).items()}
        for kind in (regions, parameters)
    )
    hidden = [name for name in parameters if name in regions]  # modules, whose outputs the other router weighs
    return Router(model, regions, groups, mine, example), ParameterRouter(model, parameters, groups, others, hidden)


def assemble(
    model: nn.Module, routing: RoutingConfig, losses: LossesConfig, groups: Sequence[str], example: torch.Tensor,
    outputs: int = 0,
) -> Parts:  # fmt: skip
    """Attach the routes to a model and make one certificate per certified region.

    Args:
        example: one data point in the model's input shape, with a batch axis.
        outputs: number of outputs of a certificate: pixels or classes.

    Raises: UserError for regions and routes that do not fit the model.
    """
    for name in losses.certificates:
        if hasattr(nn.ModuleDict(), name):
            raise UserError(f"losses.certificates: '{name}' is a method of torch modules and cannot name a "
                            "certificate; rename the region")  # fmt: skip
    parts = Parts(model, nn.ModuleDict(), *routers(model, routing, groups, example), outputs)
    parts.parameter_router.apart = {group for group, weight in losses.groups.items() if weight == 0}
    for name in losses.certificates:
        parts.certificates[name] = parts.certificate(name)
    return parts
