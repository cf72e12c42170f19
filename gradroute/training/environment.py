"""What a run computes on and with: for its manifest, and for a bug report."""

import os
import platform
from typing import Any

import torch

from gradroute.records import provenance


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return versions, operating system, hardware, threads, device and precision, as `manifest.json` names them."""
    hardware = provenance.hardware()
    if device.type == "cuda":
        hardware |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    hardware["threads"] = torch.get_num_threads()
    return {
        **provenance.software(),
        "platform": platform.platform(),
        "hardware": hardware,
        "device": str(device),
        "precision": precision,
        "settings": {name: os.environ[name] for name in provenance.SETTINGS if name in os.environ},
    }
