"""A run's modules, untrained: the model, the routes on it, and a certificate for each region that gets one."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.config.schema import LossesConfig, RoutingConfig
from gradroute.errors import UserError
from gradroute.models.base import certificate_of
from gradroute.routing import ParameterRegion, ParameterRouter, Region, Router

Regions = tuple[dict[str, Region], dict[str, ParameterRegion]]


def read_regions(routing: RoutingConfig) -> Regions:
    """The configured regions: those of activations, those of parameters."""
    activations: dict[str, Region] = {}
    parameters: dict[str, ParameterRegion] = {}
    for name, region in routing.regions.items():
        if region.parameters is not None:
            parameters[name] = ParameterRegion(region.parameters, region.axis or 0)
        else:
            axis = -1 if region.axis is None else region.axis
            activations[name] = Region(region.site, region.units, axis, region.output)
    return activations, parameters


@dataclass
class Parts:
    """The modules of a run and the routes on its model; `outputs` is how many numbers a certificate gives."""

    model: nn.Module
    certificates: nn.ModuleDict
    router: Router
    parameter_router: ParameterRouter
    outputs: int = 0

    def certificate(self, region: str) -> nn.Module:
        """An untrained certificate, from what the example showed of the region."""
        found = {name: site.activation for name, site in self.router.found.items()}
        seen = self.router.regions[region].select(found)
        return certificate_of(self.model, seen.shape[1:], self.outputs).to(seen.device)


def routers(
    model: nn.Module, routing: RoutingConfig, groups: Sequence[str], example: torch.Tensor
) -> tuple[Router, ParameterRouter]:
    """The configured routes on a model, of activations and of parameters. Raises: UserError if they do not fit."""
    regions, parameters = read_regions(routing)
    mine, others = (
        {g: {r: row[r] for r in row if r in kind} for g, row in routing.routes.items()}
        for kind in (regions, parameters)
    )
    return Router(model, regions, groups, mine, example), ParameterRouter(model, parameters, groups, others)


def assemble(
    model: nn.Module, routing: RoutingConfig, losses: LossesConfig, groups: Sequence[str], example: torch.Tensor,
    outputs: int = 0,
) -> Parts:  # fmt: skip
    """A model with its routes and one certificate per certified region.

    Args:
        example: one data point as the model takes it, with a batch axis.
        outputs: of a certificate: pixels or classes.

    Raises: UserError for regions and routes that do not fit the model.
    """
    for name in losses.certificates:
        if hasattr(nn.ModuleDict(), name):
            raise UserError(f"losses.certificates: '{name}' is a method of torch's modules, no name for a certificate; "
                            "rename the region")  # fmt: skip
    parts = Parts(model, nn.ModuleDict(), *routers(model, routing, groups, example), outputs)
    for name in losses.certificates:
        parts.certificates[name] = parts.certificate(name)
    return parts
