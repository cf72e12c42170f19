"""The one training loop: any objective that returns named terms, any parameters."""

import math
from collections.abc import Callable, Iterable

import torch

from gradroute.errors import UserError
from gradroute.losses import Term
from gradroute.schema import PresetConfig, TrainerConfig

Terms = dict[Term, tuple[torch.Tensor, float]]


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


def fit(
    objective: Callable[[torch.Tensor, torch.Tensor], Terms],
    parameters: Iterable[torch.nn.Parameter],
    images: torch.Tensor,
    group_index: torch.Tensor,
    trainer: TrainerConfig,
    precision: torch.dtype,
    generator: torch.Generator,
    on_epoch: Callable[[int, int, dict[Term, float]], None],
) -> None:
    """Minimise an objective with Adam (coupled L2) over shuffled batches; the last, smaller batch is kept.

    Args:
        objective: takes a batch `(batch, pixels)` and its group numbers, returns terms with weights.
        parameters: what the optimizer updates.
        images: the whole training set `(n, pixels)`, on the device; `group_index` `(n,)`.
        trainer: the resolved configuration.
        precision: bfloat16 for autocast, else float32.
        generator: a CPU generator that alone decides the order of the data.
        on_epoch: called with the epoch (from 1), the number of updates so far, and each term's mean over the epoch.

    Raises: FloatingPointError, naming the term, if a loss is not finite at the end of an epoch.
    """
    optimizer = torch.optim.Adam(
        list(parameters),
        lr=trainer.lr,
        betas=(trainer.betas[0], trainer.betas[1]),
        weight_decay=trainer.weight_decay,
        fused=True,
    )
    batches = math.ceil(len(images) / trainer.batch_size)
    step, steps = 0, batches * trainer.epochs
    autocast = torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16)
    for epoch in range(1, trainer.epochs + 1):
        order = torch.randperm(len(images), generator=generator).to(images.device)
        sums: dict[Term, torch.Tensor] = {}
        for chosen in order.split(trainer.batch_size):
            for parameter_group in optimizer.param_groups:
                parameter_group["lr"] = learning_rate(trainer, step, steps)
            with autocast:
                terms = objective(images[chosen], group_index[chosen])
            loss = torch.stack([value * weight for value, weight in terms.values()]).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            for term, (value, _) in terms.items():  # stays on the device: one synchronisation an epoch
                sums[term] = sums.get(term, 0) + value.detach()
        means = {term: float(total) / batches for term, total in sums.items()}
        for term, mean in means.items():
            if not math.isfinite(mean):
                raise FloatingPointError(
                    f"epoch {epoch}: the {term.head} {term.metric} of group {term.group}, region {term.region} is "
                    f"{mean}; lower trainer.lr (now {trainer.lr})"
                )
        on_epoch(epoch, step, means)
