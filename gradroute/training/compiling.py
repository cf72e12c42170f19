"""Train a model compiled by `torch.compile`, with its routes attached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch._functorch import config as functorch

from gradroute.errors import UserError
from gradroute.training.objectives import Objective


def fault(error: Exception) -> str | None:
    """Return in one line why the compiler failed; None for an error that is not the compiler's."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    inner = getattr(error, "inner_exception", None) or error
    return next((line.strip() for line in str(inner).splitlines() if line.strip()), type(inner).__name__)


@contextmanager
def _told() -> Iterator[None]:
    """Report the compiler's errors in one line with the fix, and clear its caches at the end of the block."""
    try:
        yield
    except Exception as error:
        if (reason := fault(error)) is None:
            raise
        raise UserError(
            f"trainer.compile=true: torch.compile fails here ({reason}); set trainer.compile=false"
        ) from None
    finally:
        torch.compiler.reset()  # its cache holds few programs per function, for all models of a process


def require_compiler(device: torch.device) -> None:
    """Compile one addition, to find out before any training. Raises: UserError if it cannot be compiled."""
    with _told():
        torch.compile(lambda x: x + 1)(torch.zeros(8, device=device))


class Attempt:
    """A compiled program that is given up at the compiler's first error, for the one that it was made of.

    The compiler works at the first call with a batch of each size, before anything of the update has been computed.
    """

    def __init__(self, called: Callable[..., torch.Tensor], log: Callable[[str], None]) -> None:
        self.called, self.log = called, log
        self.program = torch.compile(lambda *inputs: called(*inputs), dynamic=False)

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Call the compiled program, or what it was made of if the compiler has failed."""
        try:
            found: torch.Tensor = self.program(*inputs)
        except Exception as error:
            if (reason := fault(error)) is None:
                raise
            self.log(f"trainer.compile=auto: trains uncompiled, since torch.compile fails here ({reason})")
            self.program = self.called
            found = self.called(*inputs)
        return found


@contextmanager
def compiled(
    objective: Objective, tried: bool = False, log: Callable[[str], None] = lambda line: None, retained: bool = False
) -> Iterator[None]:  # fmt: skip
    """Have the objective call its model compiled inside the block; the model itself and its names do not change.

    Each batch size is compiled separately: a program for several sizes would round differently in a resumed run. On a
    CPU only deterministic algorithms are used, since the compiled gradient of an embedding is summed in any order.
    tried: if the model cannot be compiled, tell `log` and go on uncompiled.
    retained: whether some backward passes retain the graph, as those of parameter routes do. If the first one did not,
        the compiler would reuse the memory of what a later one needs.

    Raises: UserError for a model that cannot be compiled, unless `tried`.
    """
    model = objective.model
    attached = objective.router.attached() if objective.router else nullcontext()
    kept = functorch.patch(donated_buffer=False) if retained else nullcontext()
    with _told(), attached, kept:
        called = objective.called()
        if tried:
            objective.program = Attempt(called, log)
        else:
            objective.program = torch.compile(lambda *inputs: called(*inputs), dynamic=False)
        before = torch.are_deterministic_algorithms_enabled()
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        torch.use_deterministic_algorithms(before or on_cpu)
        try:
            yield
        finally:
            objective.program = None
            torch.use_deterministic_algorithms(before)
