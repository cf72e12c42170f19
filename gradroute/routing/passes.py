"""Open `route` blocks, and which of them hold for a forward pass: those of the context that it runs in."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import torch

from gradroute.errors import UserError
from gradroute.routing.hooks import in_backward
from gradroute.routing.mask import keeping
from gradroute.routing.monitor import Monitor, OneGroup, Watched
from gradroute.routing.tables import Table, rows_of


@dataclass(eq=False)
class Pass:
    """State of one `route` block: memberships, the sites' activations, and what measures them.

    owner: the router. outer: its blocks around this one, outermost first. tables: those of a replica of a stack, by
    site name, instead of the router's own. open: whether the block is entered and not left.
    """

    membership: torch.Tensor
    monitor: Monitor | OneGroup | Watched | None
    owner: object = None
    outer: tuple["Pass", ...] = ()
    tables: Mapping[str, Table] | None = None
    open: bool = True
    activations: dict[str, torch.Tensor] = field(default_factory=dict)
    rows: dict[tuple[Table, str], torch.Tensor] = field(default_factory=dict)  # by table, which most sites share

    def of(self, table: Table, forward: bool = False) -> torch.Tensor:
        """Return each data point's weights, or forward factors, `(…, units)`."""
        key = (table, "forward" if forward else "weight")
        if key not in self.rows:
            values = table.forward if forward else table.weight
            self.rows[key] = rows_of(values, self.membership, table.moved[forward])
        return self.rows[key]

    def keep(self, table: Table, like: torch.dtype) -> torch.Tensor:
        """Return where each data point's weights, or forward factors, are not 0: see `gradroute.routing.mask.keeping`.

        Gradients through a forward factor of 0 are 0 as well.
        """
        key = (table, f"keep {like.itemsize}")
        if key not in self.rows:
            if self.membership.is_floating_point():
                found = keeping(self.of(table), like.itemsize)
                self.rows[key] = found & keeping(self.of(table, True), like.itemsize) if table.forwarded else found
            else:
                self.rows[key] = rows_of(table.keep(like.itemsize), self.membership, ())
        return self.rows[key]

    def close(self) -> None:
        """End the block; a context that was copied inside it and lives on then holds no tensors."""
        self.open, self.outer, self.activations, self.rows = False, (), {}, {}


_ROUTED: ContextVar[tuple[Pass, ...]] = ContextVar("gradroute_routes", default=())  # of this context, outermost first


def held(owner: object) -> tuple[Pass, ...]:
    """Return the blocks of a router that this context entered, or the one that it was copied from."""
    return tuple(entry for entry in _ROUTED.get() if entry.owner is owner and entry.open)


@contextmanager
def entered(entry: Pass, opened: list[Pass]) -> Iterator[None]:
    """Have a pass hold in this context inside the block; `opened` lists the router's passes in all contexts.

    Raises: UserError if another context measures by the same monitor.
    """
    monitors = [other.monitor for other in list(opened) if other not in entry.outer]
    if entry.monitor is not None and any(entry.monitor is monitor for monitor in monitors):
        raise UserError("route: another thread measures by this monitor; give each thread its own")
    opened.append(entry)
    _ROUTED.set((*_ROUTED.get(), entry))
    try:
        yield
    finally:  # not by a token: a generator may end in another context than it began in
        _ROUTED.set(tuple(other for other in _ROUTED.get() if other is not entry))
        opened.remove(entry)
        entry.close()


def holding(owner: object, opened: list[Pass]) -> tuple[Pass, ...]:
    """Return the passes that hold for a forward pass in this context. Raises: UserError if that cannot be told."""
    own = held(owner)
    return own if own or not opened else _elsewhere(list(opened))


def _elsewhere(opened: list[Pass]) -> tuple[Pass, ...]:
    """Return those of another context: of the one whose backward pass repeats a checkpointed pass in this thread."""
    if in_backward():
        for last in opened:
            if {*opened} == {*last.outer, last}:
                return (*last.outer, last)
    elif not torch.is_grad_enabled():  # nothing is trained by this pass
        return ()
    raise UserError(
        "a forward pass with gradients and without a route, while another thread (or task) routes the model: enter "
        "route here too, with -1 for no weights, or run this part of that thread's pass in a copy of its context"
    )
