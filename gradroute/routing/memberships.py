"""Read memberships: which group each data point, or each token, belongs to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.errors import UserError, unknown

UNSIGNED = (torch.uint8, torch.uint16, torch.uint32, torch.uint64)
WHOLE = (torch.int8, torch.int16, torch.int32, torch.int64, *UNSIGNED)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Membership = Any  # a group's name, a number, or a tensor, NumPy array or list of numbers; see `read`


@dataclass
class Later:
    """Memberships of a training on another device than the CPU, checked without waiting for it at every pass.

    Attributes: `wrong`, whether a value was out of range, `()` bool, always at the same address; `right`, the advice.
    """

    wrong: torch.Tensor
    right: str = ""

    def check(self) -> None:
        """Wait for the device. Raises: UserError if a membership had a value out of range since the block began."""
        if bool(self.wrong):
            raise _out_of_range(self.right)


_LATER: ContextVar[Later | None] = ContextVar("gradroute_memberships", default=None)


@contextmanager
def checked_later(device: torch.device, later: Later | None = None) -> Iterator[Later]:
    """Have values on this device checked when `check` of the yielded object is called, not at every pass.

    On a CPU, where nothing waits, they are checked at once all the same. `later`: that of an earlier block, whose
    addresses a captured update writes to.
    """
    later = later or Later(torch.zeros((), dtype=torch.bool, device=device))
    before = _LATER.get()
    _LATER.set(later)
    try:
        yield later
    finally:
        _LATER.set(before)


def _out_of_range(right: str) -> UserError:
    return UserError(f"membership has values out of range: give {right}")


def read(membership: Membership, groups: Sequence[str]) -> torch.Tensor:
    """Return memberships as int64 group numbers, -1 for the default route, or as shares of the groups.

    Args:
        membership: the name or number of one group for all data points, whole numbers of any type, or floats with the
            groups on the last axis; a tensor, a NumPy array or (nested) lists.

    Raises: UserError for anything else, with its type and shape, and for numbers out of range.
    """
    if isinstance(membership, str):
        if membership not in groups:
            raise unknown("group", membership, groups)
        return torch.tensor(list(groups).index(membership))
    right = f"whole numbers of the {len(groups)} groups, -1 for none, or float shares (batch, {len(groups)})"
    given = _tensor(membership, right)
    mixed = given.dtype in FLOATS
    if not (mixed or given.dtype in WHOLE) or (mixed and (given.dim() < 1 or given.shape[-1] != len(groups))):
        raise UserError(f"membership of {given.dtype} and shape {tuple(given.shape)}: give {right}")
    least = 0 if given.dtype in UNSIGNED else -1  # the largest uint64 would turn into -1
    given = given if mixed else given.long()
    valid = given.isfinite() if mixed else (given >= least) & (given < len(groups))
    later = _LATER.get()
    try:
        if later is None or given.device.type == "cpu":
            fits = bool(valid.all())
        else:
            later.right, fits = right, True
            later.wrong.logical_or_(~valid.all())
    except RuntimeError:  # inside vmap, values cannot be read
        fits = True
    if not fits:
        raise _out_of_range(right)
    return given


def _tensor(membership: Membership, right: str) -> torch.Tensor:
    try:
        given = membership if isinstance(membership, torch.Tensor) else torch.tensor(_array(membership))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = (str(error).splitlines() or [""])[0]
        raise UserError(f"membership is a {type(membership).__name__} ({reason}): give {right}") from None
    if given.layout != torch.strided or given.is_quantized:
        raise UserError(f"membership is a tensor of layout {given.layout} and {given.dtype}: give {right}")
    return given


def _array(membership: Membership) -> Any:
    """Return an array that torch reads: it takes neither reversed ones nor those of another byte order."""
    if isinstance(membership, int):
        return membership
    import numpy as np  # here, so that the method itself needs torch only

    array = np.asarray(membership)
    return array.astype(array.dtype.newbyteorder("="), order="C")
