"""Gradient routing: which data trains which part of a network (GR section 3)."""

from gradroute.routing.mask import mask_gradient
from gradroute.routing.monitor import Monitor, Norms, OneGroup
from gradroute.routing.parameters import ParameterRegion, ParameterRouter
from gradroute.routing.regions import Region, parse_units
from gradroute.routing.router import Router
from gradroute.routing.sites import Site, observed

__all__ = [
    "Monitor",
    "Norms",
    "OneGroup",
    "ParameterRegion",
    "ParameterRouter",
    "Region",
    "Router",
    "Site",
    "mask_gradient",
    "observed",
    "parse_units",
]
