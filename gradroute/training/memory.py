"""Whether a configuration's sizes fit the machine, known before memory is taken."""

import os
from pathlib import Path

import torch
from torch import nn

from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.models import build as models
from gradroute.routing.sites import hooked

FLOAT = 4  # bytes
COPIES = 4  # of every parameter in training: itself, its gradient, and Adam's two moments
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def machine_memory(device: torch.device) -> int:
    """Bytes that a process may have there at all, used or not: of a GPU, or the least of the machine's limits."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    found = [2**63]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    found += [
        int(text) for path in CGROUPS if Path(path).is_file() and (text := Path(path).read_text().strip()).isdigit()
    ]
    try:
        import resource
    except ImportError:  # not on Windows
        return min(found)
    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    return min([*found, *([] if limit == resource.RLIM_INFINITY else [limit])])


def _activations(model: nn.Module, images: torch.Tensor) -> int:
    """Numbers in the outputs of all modules without children, for a batch on the meta device."""
    counted: list[int] = []

    def count(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        counted.append(output.numel())

    leaves = [name for name, module in model.named_modules() if name and not list(module.children())]
    with hooked(model, dict.fromkeys(leaves, count)):
        model(images)
    return sum(counted)


def require_memory(config: Config, images: torch.Tensor, trains: bool, classes: int = 0) -> None:
    """Raise UserError, naming the key to lower, if the model and its certificates cannot fit the machine's memory.

    An estimate from below: parameters, and for training gradients, moments and one batch's activations.

    Args:
        images: `(n, pixels)`, or of a classifier `(n, channels, height, width)`, of the data or of their shape; where
            they lie is where the model will.
        classes: how many labels a classifier tells apart.
    """
    with torch.device("meta"):
        model = models.build(config.model, images.shape[1:], classes)
        decoder = models.build_certificate(config.model, (1, 1, 1), classes or images[0].numel())
    heads = len(config.losses.certificates) * (2 if "certify" in config.steps else 1)
    numbers = sum(p.numel() for p in model.parameters()) + heads * sum(p.numel() for p in decoder.parameters())
    weights, batch = FLOAT * numbers * (COPIES if trains else 1), 0
    if trains:
        rows = min(config.trainer.batch_size, len(images))
        batch = 2 * FLOAT * _activations(model, torch.empty(rows, *images.shape[1:], device="meta"))
    limit = machine_memory(images.device)
    if weights + batch > limit:
        model_sizes, smaller = config.model, "model.hidden"
        model_key = f"model.hidden={model_sizes.hidden}, model.encoding={model_sizes.encoding}"
        if model_sizes.resnet is not None:
            model_key, smaller = f"model.resnet.width={model_sizes.resnet.width}", "model.resnet.width"
        batch_key = f"trainer.batch_size={config.trainer.batch_size}"
        key, lower = (model_key, smaller) if weights > batch else (batch_key, "trainer.batch_size")
        sizes = f"{(weights + batch) / 2**30:.1f} GiB are needed and the machine has {limit / 2**30:.1f}"
        raise UserError(f"{key}: {sizes}; lower {lower}")
