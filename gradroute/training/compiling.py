"""Train a model compiled by `torch.compile`, with its routes attached."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

import torch
from torch._functorch import config as functorch

from gradroute.errors import UserError
from gradroute.training.objectives import Objective
from gradroute.training.optimizers import compilable

if TYPE_CHECKING:
    from gradroute.training.gradients import Single
    from gradroute.training.stack import Stack

Make = Callable[[Callable[..., Any]], Callable[..., Any]]  # from a function to its program
_numbers = count()


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


def compiled_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function's compiled program, of its own: torch finds programs by code, and keeps few for each."""

    def called(*inputs: Any) -> Any:
        return function(*inputs)

    called.__code__ = called.__code__.replace(co_name=f"called_{next(_numbers)}")
    program: Callable[..., Any] = torch.compile(called, dynamic=False)
    return program


class Attempt:
    """A compiled function that is given up at the compiler's first error, for the one that it was made of.

    The compiler works at the first call with a batch of each size, before anything of the update has been computed.
    """

    def __init__(self, called: Callable[..., Any], log: Callable[[str], None]) -> None:
        self.called, self.log = called, log
        self.program = compiled_of(called)

    def __call__(self, *inputs: Any) -> Any:
        """Call the compiled program, or what it was made of if the compiler has failed."""
        try:
            return self.program(*inputs)
        except Exception as error:
            if (reason := fault(error)) is None:
                raise
            self.log(f"trainer.compile=auto: trains uncompiled, since torch.compile fails here ({reason})")
            self.program = self.called
            return self.called(*inputs)


def _once(make: Make, made: dict[Callable[..., Any], Callable[..., Any]], function: Callable[..., Any]) -> Any:
    """Return the program of a function, made once."""
    if function not in made:
        made[function] = make(function)
    return made[function]


@contextmanager
def compiled(
    objective: Objective, tried: bool = False, log: Callable[[str], None] = lambda line: None, retained: bool = False,
    losses: bool | None = None,
) -> Iterator[None]:  # fmt: skip
    """Have the objective call its model compiled inside the block; the model itself and its names do not change.

    losses: whether it calls its losses compiled, too, with certificates and penalties; None: on a GPU.

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
    make: Make = partial(Attempt, log=log) if tried else compiled_of
    with _told(), attached, kept:
        objective.program = make(objective.called())
        before = torch.are_deterministic_algorithms_enabled()
        on_cpu = all(parameter.device.type == "cpu" for parameter in model.parameters())
        objective.programs = partial(_once, make, {}) if losses or (losses is None and not on_cpu) else None
        torch.use_deterministic_algorithms(before or on_cpu)
        try:
            yield
        finally:
            objective.program = objective.programs = None
            torch.use_deterministic_algorithms(before)


@contextmanager
def compiled_update(program: "Single | Stack", tried: bool, log: Callable[[str], None]) -> Iterator[None]:
    """Have a program make its updates compiled inside the block.

    The optimizer's step and the copies of the weights in a lower precision become one pass over the numbers. This pays
    on a GPU, where Adam takes a fifth of an update. On a CPU, a compiled Adam took twice as long as the fused one.
    """
    plain = program.step
    with _told(), compilable(program.optimizer):
        program.step = Attempt(plain, log) if tried else compiled_of(plain)
        try:
            yield
        finally:
            program.step = plain
