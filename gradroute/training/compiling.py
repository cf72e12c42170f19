"""A model compiled by `torch.compile` while it trains, with its routes on it."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from gradroute.errors import UserError
from gradroute.training.objectives import Objective


@contextmanager
def _told() -> Iterator[None]:
    """What the compiler raises, in one line that says what to do. Its own caches end with the block."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        inner = getattr(error, "inner_exception", None) or error
        reason = next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)
        raise UserError(
            f"trainer.compile=true: torch.compile fails here ({reason}); set trainer.compile=false"
        ) from None
    finally:
        torch.compiler.reset()  # it keeps few programs of one function, over all models of a process


def require_compiler(device: torch.device) -> None:
    """Compile one addition. Raises: UserError if that cannot be done: it must be said before anything is trained."""
    with _told():
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))


@contextmanager
def compiled(objective: Objective) -> Iterator[None]:
    """Have the objective call its model compiled inside; the model itself, and the names in it, stay as they are.

    Each size of batch is compiled by itself: a program for several sizes would round differently before and after a run
    that goes on. On a CPU only algorithms that give the same bits every time are used: the compiled gradient of an
    embedding adds up in any order. Raises: UserError for a model that cannot be compiled.
    """
    model = objective.model
    with _told(), objective.router.attached() if objective.router else nullcontext():
        objective.program = torch.compile(lambda *inputs: model(*inputs), dynamic=False)
        before = torch.are_deterministic_algorithms_enabled()
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        torch.use_deterministic_algorithms(before or on_cpu)
        try:
            yield
        finally:
            objective.program = None
            torch.use_deterministic_algorithms(before)
