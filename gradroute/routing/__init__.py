"""Gradient routing: which data trains which part of a network (GR section 3).

Names are imported on first use, so that configurations can read route schedules without importing torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradroute.routing.mask import mask_gradient
    from gradroute.routing.monitor import Monitor, Norms, OneGroup
    from gradroute.routing.parameter_regions import ParameterRegion
    from gradroute.routing.parameters import ParameterRouter
    from gradroute.routing.regions import Region, parse_units
    from gradroute.routing.router import Router
    from gradroute.routing.sites import Site, observed
    from gradroute.routing.watching import Usage, Watching, watch

_HOMES = {
    "mask": ("mask_gradient",),
    "monitor": ("Monitor", "Norms", "OneGroup"),
    "parameter_regions": ("ParameterRegion",),
    "parameters": ("ParameterRouter",),
    "regions": ("Region", "parse_units"),
    "router": ("Router",),
    "sites": ("Site", "observed"),
    "watching": ("Usage", "Watching", "watch"),
}
__all__ = [
    "Monitor",
    "Norms",
    "OneGroup",
    "ParameterRegion",
    "ParameterRouter",
    "Region",
    "Router",
    "Site",
    "Usage",
    "Watching",
    "mask_gradient",
    "observed",
    "parse_units",
    "watch",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"gradroute.routing.{module}"), name)
    raise AttributeError(f"module 'gradroute.routing' has no attribute '{name}'")
