"""gradroute: gradient routing experiments and the library under them.

Names are imported on first use, so that `import gradroute` and the command line start without torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradroute.errors import UserError
    from gradroute.loading import LoadedRun, load
    from gradroute.routing import Groups, Region, Router, mask_gradient, parse_units

__version__ = "0.1.0"
_HOMES = {
    "UserError": "gradroute.errors",
    "LoadedRun": "gradroute.loading",
    "load": "gradroute.loading",
    **dict.fromkeys(("Groups", "Region", "Router", "mask_gradient", "parse_units"), "gradroute.routing"),
}
__all__ = ["Groups", "LoadedRun", "Region", "Router", "UserError", "load", "mask_gradient", "parse_units"]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'gradroute' has no attribute '{name}'")
