"""Train a model compiled by `torch.compile`, with its routes attached."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch

from gradroute.errors import UserError
from gradroute.training.objectives import Objective


@contextmanager
def _told() -> Iterator[None]:
    """Report the compiler's errors in one line with the fix, and clear its caches at the end of the block."""
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
        torch.compiler.reset()  # its cache holds few programs per function, for all models of a process


def require_compiler(device: torch.device) -> None:
    """Compile one addition, to find out before any training. Raises: UserError if it cannot be compiled."""
    with _told():
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))


@contextmanager
def compiled(objective: Objective) -> Iterator[None]:
    """Have the objective call its model compiled inside the block; the model itself and its names do not change.

    Each batch size is compiled separately: a program for several sizes would round differently in a resumed run. On a
    CPU only deterministic algorithms are used, since the compiled gradient of an embedding is summed in any order.
    Raises: UserError for a model that cannot be compiled.
    """
    model = objective.model
    with _told(), objective.router.attached() if objective.router else nullcontext():
        called = objective.called()
        objective.program = torch.compile(lambda *inputs: called(*inputs), dynamic=False)
        before = torch.are_deterministic_algorithms_enabled()
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        torch.use_deterministic_algorithms(before or on_cpu)
        try:
            yield
        finally:
            objective.program = None
            torch.use_deterministic_algorithms(before)
