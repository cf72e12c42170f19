"""The one training loop: any objective that returns named terms, any parameters."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext

import torch

from gradroute.errors import UserError
from gradroute.losses import Term, Terms
from gradroute.routing import ParameterRouter
from gradroute.schema import PresetConfig, TrainerConfig


def pick_device(name: str) -> torch.device:
    """The device that `trainer.device` names; `auto` takes a GPU if there is one. Raises: UserError."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
        return torch.device(name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"trainer.device={name}: cannot be used here ({reason}); auto, cpu or cuda:N") from None


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """Resolve `trainer.precision`: `auto` is bfloat16 where the processor or GPU multiplies it natively."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
        native = any(getattr(torch.cpu, check, lambda: False)() for check in checks)
    return torch.bfloat16 if native else torch.float32


def learning_rate(trainer: PresetConfig, step: int, steps: int) -> float:
    """The rate of update `step` (from 0) out of `steps`: linear warm-up, then constant or cosine to zero."""
    warmup = min(1.0, (step + 1) / trainer.warmup_steps) if trainer.warmup_steps else 1.0
    decay = 0.5 * (1 + math.cos(math.pi * step / steps)) if trainer.schedule == "cosine" else 1.0
    return trainer.lr * warmup * decay


def batches(
    points: int, size: int, generator: torch.Generator, group_index: torch.Tensor | None = None
) -> Iterator[torch.Tensor]:
    """The row numbers of one epoch's batches, shuffled; each of one group if `group_index` `(points,)` is given."""
    order = torch.randperm(points, generator=generator)
    if group_index is None:
        yield from order.split(size)
        return
    groups = group_index.cpu()[order]
    chunks = [chunk for group in groups.unique() for chunk in order[groups == group].split(size)]
    for i in torch.randperm(len(chunks), generator=generator).tolist():
        yield chunks[i]


def backward(terms: Terms, router: ParameterRouter | None) -> None:
    """Add the gradients of the sum of weight × value; with parameter routes, each group's terms by its own weights."""
    if router is None:
        torch.stack([value * weight for value, weight in terms.values()]).sum().backward()
        return
    losses: dict[str | None, torch.Tensor] = {}
    for term, (value, weight) in terms.items():
        group = term.group if term.group in router.groups else None  # None: what no group's route applies to
        losses[group] = losses[group] + value * weight if group in losses else value * weight
    router.backward(losses)


def fit(
    task: Callable[[torch.Tensor], Terms],
    parameters: Iterable[torch.nn.Parameter],
    points: int,
    trainer: TrainerConfig,
    precision: torch.dtype,
    device: torch.device,
    generator: torch.Generator,
    on_epoch: Callable[[int, int, dict[Term, float]], None],
    before_update: Callable[[int, torch.Tensor], None] = lambda step, chosen: None,
    parameter_router: ParameterRouter | None = None,
    group_index: torch.Tensor | None = None,
) -> None:
    """Minimise a task's terms with Adam (coupled L2) over shuffled batches; the last, smaller batch is kept.

    Args:
        task: takes the row numbers `(batch,)` of data points, on `device`, and returns terms with weights.
        parameters: what the optimizer updates.
        points: the number of data points.
        trainer: the resolved configuration.
        precision: bfloat16 for autocast, else float32.
        generator: a CPU generator that alone decides the order of the data.
        on_epoch: called with the epoch (from 1), the number of updates so far, and each term's mean over the epoch.
        before_update: called with the number of updates so far and the batch's row numbers.
        parameter_router: weighs the terms' gradients by their group, and freezes what no group present may touch.
        group_index: group numbers `(points,)` if batches are to be of one group each.

    Raises: FloatingPointError, naming the term, if a loss is not finite at the end of an epoch.
    """
    optimizer = torch.optim.Adam(
        list(parameters),
        lr=trainer.lr,
        betas=(trainer.betas[0], trainer.betas[1]),
        weight_decay=trainer.weight_decay,
        fused=True,
    )
    step, steps = (
        0,
        trainer.epochs * sum(1 for _ in batches(points, trainer.batch_size, torch.Generator(), group_index)),
    )
    autocast = torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    for epoch in range(1, trainer.epochs + 1):
        values: dict[Term, list[torch.Tensor]] = {}
        for rows in batches(points, trainer.batch_size, generator, group_index):
            chosen = rows.to(device)
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = learning_rate(trainer, step, steps)
            before_update(step, chosen)
            with autocast:
                terms = task(chosen)
            optimizer.zero_grad()
            backward(terms, parameter_router)
            with parameter_router.updating(optimizer) if parameter_router else nullcontext():
                optimizer.step()
            step += 1
            for term, (value, _) in terms.items():  # stays on the device: one synchronisation an epoch
                values.setdefault(term, []).append(value.detach())
        means = {term: float(torch.stack(found).mean()) for term, found in values.items()}
        for term, mean in means.items():
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"epoch {epoch}: the {term.head} {term.metric} of group {term.group}, region {term.region} is "
                    f"{mean}; lower trainer.lr (now {trainer.lr})"
                )
        on_epoch(epoch, step, means)
