"""Estimate the memory of a language model's run, refuse one that cannot fit, and take batches in parts that fit."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.schema import Config, TrainerConfig
from gradroute.models.logits import at_once, source
from gradroute.models.outlines import passable
from gradroute.routing import Router, Site
from gradroute.tasks.image_checks import indivisible
from gradroute.training.memory import (
    COPIES,
    FLOAT,
    activation_numbers,
    parameter_numbers,
    part_memory,
    require_memory,
)

SHOWN = 2048  # rows whose activations the mean and resample ablations use, at most
STORED = 5 * 2**29  # bytes of these activations, at most


def row_bytes(model: nn.Module, vocabulary: int, length: int) -> int:
    """Return the bytes of one row's logits and activations, and of their gradients.

    model: on the meta device; a small one is moved to the CPU.
    """
    passed, pieces = passable(model), at_once(model, length)
    row = torch.zeros(1, length, dtype=torch.int64, device=next(passed.parameters()).device)
    with torch.random.fork_rng(devices=[]):  # a dropout draws in its pass
        activations = activation_numbers(passed, row, called=source(passed, pieces))
    return 2 * FLOAT * (vocabulary * (pieces or length) + activations)


def fitted(config: Config, trainer: TrainerConfig, points: int, row: int, device: torch.device) -> TrainerConfig:
    """Split batches into enough parts of `row` bytes a row to fit `part_memory`, unless a penalty needs the whole."""
    if indivisible(config):
        return trainer
    parts = -(-min(trainer.batch_size, points) // max(1, part_memory(device) // row))
    return replace(trainer, accumulate=max(trainer.accumulate, parts))


def copies(config: Config) -> int:
    """Return how many copies of the parameters the step with the most of them holds.

    A training has COPIES. Those of `finetune` and `relearn` also have the trained model, the models that earlier steps
    made, and the best weights so far.
    """
    names = step_names(config)
    tuned = [name for name in ("finetune", "relearn") if name in names]
    if not tuned:
        return COPIES
    earlier = [name for name in ("unlearn", "finetune") if name in names and name != tuned[-1]]
    return COPIES + 2 + len(earlier)


def require_language_memory(
    config: Config, model: nn.Module, row: int, length: int, points: int, device: torch.device, smaller: str
) -> None:
    """Raise UserError, naming the key to lower, if parameters and a part of a batch exceed the machine's memory.

    Args:
        model: the model on the meta device. row: bytes of a row; see `row_bytes`.
        length: tokens in a row. points: number of rows to train on.
        smaller: what to do if the model is too large, unless its own sizes are in the configuration.
    """
    trainer = fitted(config, config.trainer, points, row, device)
    rows = -(-min(trainer.batch_size, points) // trainer.accumulate)
    sizes = [key for key in ("width", "layers", "hidden") if config.model.get(key)]
    key = ", ".join(f"model.{size}={config.model[size]}" for size in sizes) or "model"
    smaller = f"lower {' or '.join(f'model.{size}' for size in sizes)}" if sizes else smaller
    batch_key, lower = f"dataset.length={length}", "lower dataset.length"
    if rows > 1:
        batch_key, lower = f"trainer.batch_size={trainer.batch_size}", "lower trainer.batch_size"
        lower += "" if indivisible(config) else ", or raise trainer.accumulate"
    parameters = copies(config) * FLOAT * parameter_numbers(model)
    require_memory(parameters, rows * row, device, key, smaller, batch_key, lower)


def rows_stored(router: Router, sites: Sequence[Site], length: int) -> int:
    """Return how many rows' activations at some sites to store: SHOWN, or fewer if they would exceed STORED."""
    units = sum(site.units_last(router.found[site.name].activation).shape[-1] for site in sites)
    return max(1, min(SHOWN, STORED // (FLOAT * length * units)))
