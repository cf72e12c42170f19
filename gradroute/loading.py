"""A run's modules from its configuration, untrained or with the weights that a finished run left."""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from gradroute import models, records
from gradroute.errors import UserError
from gradroute.routing import Region, parse_units
from gradroute.schema import Config


def build(config: Config, pixels: int, device: torch.device) -> tuple[nn.Module, nn.ModuleDict, dict[str, Region]]:
    """The untrained model, one certificate per certified region, and the regions. Raises: UserError."""
    regions = {
        name: Region(region.site, parse_units(region.units, f"routing.regions.{name}.units"))
        for name, region in config.routing.regions.items()
    }
    model = models.build(config.model, pixels).to(device)
    certificates = nn.ModuleDict(
        {
            name: models.build_certificate(config.model, len(regions[name].units), pixels)
            for name in config.losses.certificates
        }
    )
    return model, certificates.to(device), regions


@dataclass
class LoadedRun:
    """A finished run: its configuration, its model and its certificates by region, in evaluation mode."""

    config: Config
    model: nn.Module
    certificates: nn.ModuleDict


def load(run: str | os.PathLike[str]) -> LoadedRun:
    """Read a finished run's model and certificates back, without executing anything from its folder.

    Raises: UserError if the folder is no finished run, or if a file's checksum or shapes are wrong.
    """
    path = Path(run)
    records.check_files(path, records.read_manifest(path), ["config.yaml", "model.safetensors", "figures.json"])
    config = records.read_config(path)
    try:
        height, width = json.loads((path / "figures.json").read_text())["shape"]
        model, certificates, _ = build(config, height * width, torch.device("cpu"))
        tensors = load_file(path / "model.safetensors")
        for module, prefix in ((model, "model."), (certificates, "certificates.")):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)})
    except (SafetensorError, RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: the weights do not fit the run's configuration ({reason})") from None
    return LoadedRun(config, model.eval(), certificates.eval())
