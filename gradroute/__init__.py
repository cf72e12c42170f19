"""gradroute: gradient routing experiments, and the library that they are built on.

Names are imported on first use, so that `import gradroute` and the command line start without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradroute.commands.python import FinishedRun, open_run, run
    from gradroute.errors import UserError
    from gradroute.models.beside import Profiles
    from gradroute.routing import (
        Monitor,
        ParameterRegion,
        ParameterRouter,
        Region,
        Router,
        mask_gradient,
        parse_units,
        watch,
    )
    from gradroute.routing.expansion import Layer, contract, expand, removed
    from gradroute.routing.routes import Route
    from gradroute.tasks.loading import LoadedRun, load

__version__ = "0.2.0"
_HOMES = {
    "gradroute.commands.python": ("FinishedRun", "open_run", "run"),
    "gradroute.errors": ("UserError",),
    "gradroute.models.beside": ("Profiles",),
    "gradroute.routing": (
        "Monitor", "ParameterRegion", "ParameterRouter", "Region", "Router", "mask_gradient", "parse_units", "watch",
    ),
    "gradroute.routing.expansion": ("Layer", "contract", "expand", "removed"),
    "gradroute.routing.routes": ("Route",),
    "gradroute.tasks.loading": ("LoadedRun", "load"),
}  # fmt: skip
__all__ = [
    "FinishedRun",
    "Layer",
    "LoadedRun",
    "Monitor",
    "ParameterRegion",
    "ParameterRouter",
    "Profiles",
    "Region",
    "Route",
    "Router",
    "UserError",
    "contract",
    "expand",
    "load",
    "mask_gradient",
    "open_run",
    "parse_units",
    "removed",
    "run",
    "watch",
]


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module 'gradroute' has no attribute '{name}'")
