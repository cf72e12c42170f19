"""Forward hooks that hold in the context that set them, and that a copy of the model drops or keeps as told."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from contextvars import ContextVar
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError, unknown

Call = Callable[[nn.Module, Any, Any], Any]

_HELD: ContextVar[tuple[object, ...]] = ContextVar("gradroute_hooks", default=())  # keys of the blocks around us


def in_backward() -> bool:
    """Return whether autograd runs a backward pass in this thread, such as one that repeats a checkpointed pass."""
    return bool(torch._C._current_graph_task_id() != -1)


class Hook:
    """A forward hook `call` that runs in the contexts that hold `key`, or everywhere if that is None.

    A thread has a context of its own, as has a task of asyncio. A backward pass may run in a thread of autograd, whose
    context is empty: there the hook runs, too.

    kept: whether a deep copy of the model keeps the hook, for good, as the copy of an ablated model must. A pickled
        model cannot keep it: pickling raises UserError then, and else leaves the hook out.
    """

    def __init__(self, call: Call, key: object | None, kept: bool) -> None:
        self.call, self.key, self.kept = call, key, kept

    def __call__(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Run the hook where it holds; None leaves the module's output as it is."""
        if self.key is None or self.key in _HELD.get() or in_backward():
            return self.call(module, inputs, output)
        return None

    def __deepcopy__(self, memo: object) -> Call:
        return Hook(self.call, None, True) if self.kept else _nothing()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.kept:
            fault = "the model has a hook that changes its outputs, of an ablation or of steering"
            raise UserError(f"{fault}, and cannot be saved; save it outside of it, or save model.state_dict()")
        return getattr, (nullcontext(), "__exit__")


def _nothing() -> Call:
    """Return a hook that does nothing and that can be unpickled where this package is not installed."""
    return nullcontext().__exit__


@contextmanager
def hooked(
    model: nn.Module, hooks: Mapping[str, Call], everywhere: bool = False, kept: bool = True
) -> Iterator[None]:  # fmt: skip
    """Register forward hooks on modules, by name, inside the block; other hooks are not touched.

    They run in passes of the context that entered the block and of those that were copied from it, so that threads that
    share a model do not see each other's hooks. `everywhere`: in all contexts. `kept`: see `Hook`.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    key = None if everywhere else object()
    with ExitStack() as stack:
        for name, hook in hooks.items():
            if name not in modules:
                raise unknown("site", name, filter(None, modules))
            stack.callback(modules[name].register_forward_hook(Hook(hook, key, kept)).remove)
        if key is None:
            yield
            return
        _HELD.set((*_HELD.get(), key))
        try:
            yield
        finally:  # not by a token: a generator may end in another context than it began in
            _HELD.set(tuple(other for other in _HELD.get() if other is not key))
