"""What a run computes on and with: for its manifest, and for a bug report."""

import os
import platform
from typing import Any

import torch

from gradroute.records import provenance


def machine(device: torch.device) -> dict[str, Any]:
    """Return the processor, cores and threads and, if it is one, the GPU, as `hardware` in `manifest.json` has them."""
    found = provenance.hardware()
    if device.type == "cuda":
        found |= {"gpu": torch.cuda.get_device_name(device), "cuda": torch.version.cuda}
    return found | {"threads": torch.get_num_threads()}


def environment(device: torch.device, precision: str) -> dict[str, Any]:
    """Return versions, operating system, hardware, threads, device and precision, as `manifest.json` names them."""
    return {
        **provenance.software(),
        "platform": platform.platform(),
        "hardware": machine(device),
        "device": str(device),
        "precision": precision,
        "settings": {name: os.environ[name] for name in provenance.SETTINGS if name in os.environ},
    }
