"""Read a finished run's model and certificates back from its folder."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.config.doors import TARGET
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import UserError
from gradroute.models.adapters import add_adapters
from gradroute.models.base import ModelPlan, plan_of, takes_flat_images
from gradroute.records import run_reader
from gradroute.tasks.image_memory import require_image_memory
from gradroute.tasks.parts import assemble
from gradroute.training.weights import WEIGHTS, read_weights


@dataclass
class LoadedRun:
    """A finished run: its configuration, its model and its certificates by region, in evaluation mode."""

    config: Config
    model: nn.Module
    certificates: nn.ModuleDict


def load(run: str | os.PathLike[str], run_code: bool = False) -> LoadedRun:
    """Read a finished run's model and certificates back.

    Nothing from the folder is executed, unless `run_code` allows a model that is not part of gradroute.
    Raises: UserError if the folder is not a finished run, or if a file's checksum or shapes are wrong.
    """
    path = Path(run)
    manifest = run_reader.read_manifest(path)
    run_reader.check_files(path, manifest, ["config.yaml", "figures.json"])
    if WEIGHTS not in manifest["files"]:
        raise UserError(f"{path}: the run kept no weights (checkpoint.keep=none); use checkpoint.keep=weights")
    config = run_reader.read_config(path, manifest, run_code, consent="run_code=True")
    names, plan = run_reader.read_names(path, manifest), plan_of(config.model, path)
    found = _found(path, config, names)
    outline = plan.outline(**found)
    if "shape" not in found:
        add_adapters(outline, config.routing.regions, read_back=True)
    read_weights(path, {"model": outline}, load=False)  # before memory is allocated and files are hashed
    run_reader.check_files(path, manifest, [WEIGHTS])
    if "classes" not in found:
        model = plan.build(**found)
        add_adapters(model, config.routing.regions, read_back=True)
        read_weights(path, {"model": model})
        return LoadedRun(config, model.eval(), nn.ModuleDict())
    return _images(path, config, plan, found)


def _found(run: Path, config: Config, names: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the run supplied to its model. Raises: UserError if the task is of another kind."""
    task: Any = locate(config.task[TARGET], "task")
    if names["kind"] != task.kind:
        raise UserError(f"{run}/figures.json: damaged (kind={names['kind']} of task {task.kind})")
    groups = {"groups": names["groups"]}
    if "vocabulary" in names:
        return groups | {"vocabulary": names["vocabulary"], "context": config.dataset.get("length")}
    if "actions" in names:
        return groups | {"shape": names["shape"], "actions": names["actions"]}
    return groups | {"shape": names["shape"], "classes": names.get("classes", 0)}


def _images(run: Path, config: Config, plan: ModelPlan, found: Mapping[str, Any]) -> LoadedRun:
    """Load a model of images with its certificates."""
    task: Any = locate(config.task[TARGET], "task")
    shape = tuple((1, *found["shape"])[-3:])
    pixels = torch.zeros(1, *shape)
    flat = takes_flat_images(config.model)
    example = pixels.flatten(1) if flat else pixels
    outputs = found["classes"] if task.classifies else pixels.numel()
    require_image_memory(config, plan, found, outputs, example.device)
    model = plan.build(**found)
    groups = list(config.routing.groups)
    parts = assemble(model, config.routing, config.losses, groups, example, outputs)
    read_weights(run, {"model": parts.model, "certificates": parts.certificates})
    return LoadedRun(config, parts.model.eval(), parts.certificates.eval())
