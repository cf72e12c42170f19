"""A run's modules from its configuration, untrained or with the weights that a finished run left."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gradroute.config.schema import Config, ModelConfig, RoutingConfig
from gradroute.errors import UserError, plain_text
from gradroute.models import build as models
from gradroute.models.plans import Plan, plan_of
from gradroute.records import run_reader
from gradroute.records.safe_reading import open_plain, place
from gradroute.routing import ParameterRegion, ParameterRouter, Region, Router
from gradroute.training.memory import require_memory

WEIGHTS = "model.safetensors"  # of a finished run
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

    def certificate(self, config: ModelConfig, region: str) -> nn.Module:
        """An untrained decoder from what the example showed of the region."""
        found = {name: site.activation for name, site in self.router.found.items()}
        seen = self.router.regions[region].select(found)
        return models.build_certificate(config, seen.shape[1:], self.outputs).to(seen.device)


def routers(
    model: nn.Module, routing: RoutingConfig, groups: list[str], example: torch.Tensor
) -> tuple[Router, ParameterRouter]:
    """The configured routes on a model, of activations and of parameters. Raises: UserError if they do not fit."""
    regions, parameters = read_regions(routing)
    mine, others = (
        {g: {r: row[r] for r in row if r in kind} for g, row in routing.routes.items()}
        for kind in (regions, parameters)
    )
    return Router(model, regions, groups, mine, example), ParameterRouter(model, parameters, groups, others)


def build(config: Config, groups: list[str], example: torch.Tensor, classes: int = 0) -> Parts:
    """The untrained model, its routes and one certificate per certified region, on the example's device.

    Args:
        groups: the groups' names.
        example: one image, `(1, pixels)`, or of a classifier `(1, channels, height, width)`.
        classes: how many labels a classifier tells apart.

    Raises: UserError for regions and routes that do not fit the model.
    """
    for name in config.losses.certificates:
        if hasattr(nn.ModuleDict(), name):
            raise UserError(f"losses.certificates: '{name}' is a method of torch's modules, no name for a certificate; "
                            "rename the region")  # fmt: skip
    model = models.build(config.model, example.shape[1:], classes).to(example.device)
    around = routers(model, config.routing, groups, example)
    parts = Parts(model, nn.ModuleDict(), *around, classes or example[0].numel())
    for name in config.losses.certificates:
        parts.certificates[name] = parts.certificate(config.model, name)
    return parts


TYPES = {torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
         torch.int64: "I64", torch.int32: "I32", torch.bool: "BOOL"}  # fmt: skip


def own_tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    """The module's tensors by name; of parameters that are tied, one name only: a file has each once."""
    found: dict[int, tuple[str, torch.Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        found.setdefault(id(tensor), (name, tensor.detach()))
    return dict(found.values())


def read_weights(run: Path, modules: Mapping[str, nn.Module], load: bool = True, name: str = WEIGHTS) -> None:
    """Load weights of a run folder into modules by their prefix, once every shape is known to fit.

    Without `load` only names, shapes and types are compared, and no tensor is read; modules may be on the meta device.
    Raises: UserError if they do not fit.
    """
    path = place(run, name)
    open_plain(path).close()
    try:
        with safe_open(path, "pt") as file:
            found = set(file.keys())
            for prefix, module in modules.items():
                wanted = {f"{prefix}.{key}": tensor for key, tensor in own_tensors(module).items()}
                if odd := {key for key in found if key.startswith(f"{prefix}.")} ^ wanted.keys():
                    raise ValueError(f"{min(odd)} is {'missing' if min(odd) in wanted else 'of no module'}")
                for key, tensor in wanted.items():
                    slice_, kind = file.get_slice(key), TYPES.get(tensor.dtype)
                    if slice_.get_shape() != list(tensor.shape) or slice_.get_dtype() != kind:
                        is_ = f"{slice_.get_dtype()} of shape {slice_.get_shape()}"
                        raise ValueError(f"{key} is {is_}, not {kind} of shape {list(tensor.shape)}")
            for prefix, module in modules.items() if load else ():
                own = {name: file.get_tensor(f"{prefix}.{name}") for name in own_tensors(module)}
                module.load_state_dict(own, strict=False)  # names are compared; what is tied has none of its own
    except (SafetensorError, RuntimeError, ValueError, KeyError, OSError, MemoryError) as error:
        reason = plain_text(str(error).splitlines()[0])
        raise UserError(f"{run}: the weights do not fit the run's configuration ({reason})") from None


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
    manifest = run_reader.read_manifest(path)
    run_reader.check_files(path, manifest, ["config.yaml", "figures.json"])
    if WEIGHTS not in manifest["files"]:
        raise UserError(f"{path}: the run kept no weights (checkpoint.keep=none)")
    config = run_reader.read_config(path, manifest)
    names = run_reader.read_names(path, manifest)
    if config.dataset.text is not None:
        plan = plan_of(config, path)
        model = _built(path, manifest, plan, names["vocabulary"], config.dataset.text.length)
        return LoadedRun(config, model.eval(), nn.ModuleDict())
    classes = names.get("classes", 0)
    shape = (math.prod(names["shape"]),) if config.model.resnet is None else (1, *names["shape"])[-3:]
    if bool(classes) != (config.model.resnet is not None):
        raise UserError(f"{path}/figures.json: damaged (classes={classes} of model {config.model.name})")
    with torch.device("meta"):
        untaken = models.build(config.model, shape, classes)
    read_weights(path, {"model": untaken}, load=False)  # before memory is taken, and before gigabytes are summed
    run_reader.check_files(path, manifest, [WEIGHTS])
    example = torch.zeros(1, *shape)
    require_memory(config, example, trains=False, classes=classes)
    parts = build(config, list(config.routing.groups), example, classes)
    read_weights(path, {"model": parts.model, "certificates": parts.certificates})
    return LoadedRun(config, parts.model.eval(), parts.certificates.eval())


def _built(run: Path, manifest: Mapping[str, Any], plan: Plan, vocabulary: int, length: int) -> nn.Module:
    """A language model with its weights; nothing is taken before its sizes are known to be those of the file."""
    read_weights(run, {"model": plan.outline(vocabulary, length)}, load=False)
    run_reader.check_files(run, manifest, [WEIGHTS])
    model = plan.build(vocabulary, length)
    read_weights(run, {"model": model})
    return model
