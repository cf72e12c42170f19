"""gradroute: gradient routing experiments and the library under them.

Names are imported on first use, so that `import gradroute` and the command line start without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradroute.errors import UserError
    from gradroute.routing import Monitor, ParameterRegion, ParameterRouter, Region, Router, mask_gradient, parse_units
    from gradroute.routing.expansion import Layer, contract, expand, removed
    from gradroute.routing.routes import Route
    from gradroute.tasks.parts import LoadedRun, load

__version__ = "0.1.0"
__all__ = [
    "Layer",
    "LoadedRun",
    "Monitor",
    "ParameterRegion",
    "ParameterRouter",
    "Region",
    "Route",
    "Router",
    "UserError",
    "contract",
    "expand",
    "load",
    "mask_gradient",
    "parse_units",
    "removed",
]
_HOMES = dict.fromkeys(__all__, "gradroute.routing") | {
    "UserError": "gradroute.errors",
    "Route": "gradroute.routing.routes",
    **dict.fromkeys(("Layer", "contract", "expand", "removed"), "gradroute.routing.expansion"),
    **dict.fromkeys(("LoadedRun", "load"), "gradroute.tasks.parts"),
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gradroute' has no attribute '{name}'")
