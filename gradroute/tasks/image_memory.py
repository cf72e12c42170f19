"""Estimate the memory of a model of images with its certificates, and refuse one that cannot fit."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.schema import Config
from gradroute.models.base import ModelPlan, certificate_of
from gradroute.models.outlines import meta
from gradroute.training.memory import COPIES, FLOAT, activation_numbers, parameter_numbers, require_memory


def _require(
    config: Config, plan: ModelPlan, model: nn.Module, outputs: int, device: torch.device, batch: int | None
) -> None:
    """Compare what parameters take, and `batch` bytes more in a training, with the machine's memory."""
    heads = len(config.losses.certificates) * (2 if "certify" in step_names(config) else 1)
    decoders = 0
    if heads:
        try:
            with meta():
                decoders = parameter_numbers(certificate_of(model, (1, 1, 1), outputs))
        except Exception:  # a certificate that cannot take one unit is left out of the estimate
            decoders = 0
    parameters = FLOAT * (parameter_numbers(model) + heads * decoders) * (1 if batch is None else COPIES)
    named = [f"model.{key}={config.model[key]}" for key in ("hidden", "encoding", "width") if key in config.model]
    key, smaller = ", ".join(named) or "model", f"lower {named[0].partition('=')[0]}" if named else plan.smaller
    batch_key = f"trainer.batch_size={config.trainer.batch_size}"
    require_memory(parameters, batch or 0, device, key, smaller, batch_key, "lower trainer.batch_size")


def require_image_memory(
    config: Config, plan: ModelPlan, found: Mapping[str, Any], outputs: int, device: torch.device, trained: bool = False
) -> None:
    """Raise UserError, naming the key to lower, if a model and its certificates cannot fit the machine's memory.

    The estimate is a lower bound: parameters and, for training, gradients and moments. Nothing is allocated.

    Args:
        found: values that the run supplies to the model; see `ModelPlan.build`.
        outputs: number of outputs of a certificate: pixels or classes.
        trained: whether it is trained.
    """
    _require(config, plan, plan.outline(**found), outputs, device, 0 if trained else None)


def require_batch_memory(
    config: Config, plan: ModelPlan, model: nn.Module, example: torch.Tensor, outputs: int, points: int
) -> None:
    """Raise UserError as `require_image_memory`, for the model, its certificates and the activations of one batch.

    Args:
        model: the built model. It is asked for one image's activations: on the meta device, which computes no numbers,
            the same pass imports torch's compiler and takes seconds.
        example: one image in the model's input shape, with a batch axis.
        outputs: number of outputs of a certificate: pixels or classes.
        points: number of images to train on.
    """
    rows = min(config.trainer.batch_size, points)
    with torch.random.fork_rng([example.device] if example.is_cuda else []):  # of a model that draws in its pass
        batch = 2 * FLOAT * rows * activation_numbers(model, example)
    _require(config, plan, model, outputs, example.device, batch)
