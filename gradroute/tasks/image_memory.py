"""Estimate the memory of a model of images with its certificates, and refuse one that cannot fit."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from gradroute.config.components import step_names
from gradroute.config.schema import Config
from gradroute.models.base import ModelPlan, certificate_of
from gradroute.training.memory import COPIES, FLOAT, activation_numbers, parameter_numbers, require_memory


def require_image_memory(
    config: Config, plan: ModelPlan, found: Mapping[str, Any], shape: Sequence[int], outputs: int, device: torch.device,
    points: int | None = None,
) -> None:  # fmt: skip
    """Raise UserError, naming the key to lower, if the model and its certificates cannot fit the machine's memory.

    The estimate is a lower bound: parameters and, for training, gradients, moments and one batch's activations.

    Args:
        found: values that the run supplies to the model; see `ModelPlan.build`.
        shape: shape of an image in the model's input.
        outputs: number of outputs of a certificate: pixels or classes.
        points: number of images to train on; None if nothing is trained.
    """
    model = plan.outline(**found)
    heads = len(config.losses.certificates) * (2 if "certify" in step_names(config) else 1)
    decoders = 0
    if heads:
        try:
            with torch.device("meta"):
                decoders = parameter_numbers(certificate_of(model, (1, 1, 1), outputs))
        except Exception:  # a certificate that cannot take one unit is left out of the estimate
            decoders = 0
    parameters, batch = FLOAT * (parameter_numbers(model) + heads * decoders), 0
    if points is not None:
        parameters *= COPIES
        rows = min(config.trainer.batch_size, points)
        batch = 2 * FLOAT * activation_numbers(model, torch.empty(rows, *shape, device="meta"))
    named = [f"model.{key}={config.model[key]}" for key in ("hidden", "encoding", "width") if key in config.model]
    key, smaller = ", ".join(named) or "model", f"lower {named[0].partition('=')[0]}" if named else plan.smaller
    batch_key = f"trainer.batch_size={config.trainer.batch_size}"
    require_memory(parameters, batch, device, key, smaller, batch_key, "lower trainer.batch_size")
