"""The ledger: per window of updates, each group's points, the gradients that reached each region, and what moved.

"This group never trained this region" can mean three things (mask 0, gradient 0, parameters unchanged), so each has its
own column. `outputs/README.md` explains the columns.
"""

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch

from gradroute.records.metrics import LEDGER_COLUMNS
from gradroute.routing import Monitor, ParameterRouter, Router
from gradroute.routing.monitor import DEFAULT

ALL, SHARED = "all", "shared"  # all groups; all parameters of the model that no region owns


def _square_in(mask: torch.Tensor, change: torch.Tensor, reduced: dict[torch.Size, torch.Tensor]) -> float:
    """Return the sum of squares where a mask that broadcasts to `change` is set, in double without a copy in double.

    reduced: filled with the sums over the axes that a mask does not slice, for further masks of its shape.
    """
    mask = mask.to(change.device)
    if mask.numel() == change.numel():
        return float(torch.linalg.vector_norm(change[mask], dtype=torch.float64)) ** 2
    if mask.shape not in reduced:
        axes = [axis for axis, size in enumerate(mask.shape) if size == 1]
        norms = torch.linalg.vector_norm(change, dim=axes, keepdim=True, dtype=torch.float64)
        reduced[mask.shape] = norms.square()
    return float(reduced[mask.shape][mask].sum())


class Ledger:
    """Recorder of a training loop, in `rows`: call `begin` before every update, from 0, and `close` after the last.

    An activation region owns its rows of the layer that makes its units; a parameter region owns its slices.

    Args:
        present: the memberships that occur in the data, of any shape.
        window: number of updates in one set of rows.
        every: norms are measured at multiples of this number, and where a group comes for the first time in a window.
    """

    def __init__(
        self, router: Router, parameter_router: ParameterRouter, present: torch.Tensor, window: int, every: int
    ) -> None:
        self.router, self.parameter_router = router, parameter_router
        self.window, self.every = window, every
        self.rows: list[dict[str, Any]] = []
        self._model = router.model
        self._owned = {name: router.parts(name) for name in router.regions}
        self._owned |= {name: parameter_router.parts(name) for name in parameter_router.regions}
        self._groups = [*router.groups, DEFAULT]
        self._monitor = Monitor(router.regions, router.groups)
        self._points = torch.zeros(len(self._groups), dtype=torch.int64, device=present.device)
        self._present = {self._groups[number] for number in present.unique().tolist()}
        self._start = 0
        self._weights: dict[str, dict[str, list[float]]] = {}  # by group and region: lowest, highest
        self._noted: tuple[object, ...] = ()  # the routers' values that the weights are known of
        self._before: dict[torch.nn.Parameter, torch.Tensor] = {}

    def begin(
        self, step: int, membership: torch.Tensor, known: torch.Tensor | None = None, rows: torch.Tensor | None = None
    ) -> Monitor | None:
        """Record the points and weights of update `step`; return a monitor if it is to be measured.

        known, rows: the data's memberships, and the numbers of the batch's rows there, on the CPU: so nothing waits for
        the device. None: `membership` is read.
        """
        if step % self.window == 0:
            if step:
                self.close(step)
            self._open(step, membership.device)
        else:
            self._harvest()
        numbers = membership.flatten() % len(self._groups)
        self._points.index_add_(0, numbers, torch.ones_like(numbers, dtype=torch.int64))
        new = self._first_seen(membership if known is None else known[rows]) if self._unseen else False
        self._note_weights()
        measured = step % self.every == 0 or new
        self.parameter_router.measure = measured
        self._measured += measured
        return self._monitor if measured else None

    def _first_seen(self, membership: torch.Tensor) -> bool:
        """Return whether a group is new in the window; it reads memberships, so call it only until all have come."""
        came = {self._groups[number] for number in membership.unique().tolist()}
        new = bool(came & self._unseen)
        self._unseen -= came
        return new

    def _note_weights(self) -> None:
        """Note the lowest and the highest weight of every group in every region, if a route has changed."""
        noted = (self.router.values, self.parameter_router.values)
        if self._noted and all(new is old for new, old in zip(noted, self._noted, strict=True)):
            return
        self._noted = noted
        for group in self.router.groups:
            for region, low_high in self._weights[group].items():
                router = self.parameter_router if region in self.parameter_router.regions else self.router
                weight = router.weight(group, region)
                low_high[:] = [min(low_high[0], weight), max(low_high[1], weight)]

    def _open(self, step: int, device: torch.device) -> None:
        self._start, self._measured, self._unseen = step, 0, set(self._present)
        self._noted = ()
        self._points = self._points.to(device).zero_()
        self._weights = {g: {region: [math.inf, -math.inf] for region in self._owned} for g in self.router.groups}
        self._weights[DEFAULT] = {region: [1.0, 1.0] for region in self._owned}
        self._monitor.reset()
        self._squares: dict[tuple[str, str], torch.Tensor] = {}  # of parameter regions
        self._shift: dict[str, torch.Tensor] = {}
        for parameter in self._model.parameters():  # reuse the same memory
            self._before.setdefault(parameter, torch.empty_like(parameter)).copy_(parameter.detach())

    def _harvest(self) -> None:
        """Collect what the parameter router measured in the last update."""
        if self.parameter_router.measure:
            for (group, region), norm in self.parameter_router.norms.items():
                key = (group or DEFAULT, region)
                self._squares[key] = self._squares[key] + norm**2 if key in self._squares else norm**2
            for region, shift in self.parameter_router.shifts.items():
                most = self._shift.get(region, shift)
                self._shift[region] = torch.maximum(most, shift)
            self.parameter_router.measure = False

    @torch.no_grad()
    def _moved(self) -> dict[str, float]:
        """Return the L2 norm of the change in each region's parameters, and the shared ones, since the window began."""
        squares = dict.fromkeys([*self._owned, SHARED], 0.0)
        for parameter, before in self._before.items():
            parts = {region: own[parameter] for region, own in self._owned.items() if parameter in own}
            none = torch.zeros([1] * parameter.dim(), dtype=torch.bool)
            parts[SHARED] = ~reduce(torch.logical_or, parts.values(), none)
            change, reduced = parameter - before, dict[torch.Size, torch.Tensor]()
            for region, mask in parts.items():
                squares[region] += _square_in(mask, change, reduced)
        return {region: math.sqrt(square) for region, square in squares.items()}

    def close(self, step: int) -> None:
        """Add the rows of the window that ends before update `step`."""
        self._harvest()
        norms = {(n.group, n.region): n for n in self._monitor.norms()}
        points = dict(zip(self._groups, self._points.tolist(), strict=True))
        for group in [group for group in self._groups if points[group]]:
            for region, (low, high) in self._weights[group].items():
                cells: dict[str, Any] = {"points": points[group], "weight_min": low, "weight_max": high}
                seen = norms.get((group, region))
                if seen:
                    cells |= {"activation": seen.activation, "routed": seen.routed, "unrouted": seen.unrouted}
                if (group, region) in self._squares:
                    cells["routed"] = math.sqrt(float(self._squares[group, region]) / self._measured)
                self._add(step, group, region, cells)
        for region, moved in self._moved().items():
            owned = region == SHARED or bool(self._owned[region])
            shifted = float(self._shift[region]) if region in self._shift else ""
            self._add(step, ALL, region, {"moved": moved if owned else "", "shifted": shifted})

    def _add(self, step: int, group: str, region: str, cells: dict[str, Any]) -> None:
        row = {"from_step": self._start, "to_step": step, "group": group, "region": region, "measured": self._measured}
        self.rows.append({column: (row | cells).get(column, "") for column in LEDGER_COLUMNS})

    def state_dict(self) -> dict[str, Any]:
        """Return the rows so far and the open window; call it after an update."""
        self._harvest()
        names = {parameter: name for name, parameter in self._model.named_parameters()}
        return {
            "rows": self.rows, "start": self._start, "measured": self._measured, "unseen": sorted(self._unseen),
            "points": self._points, "weights": self._weights, "monitor": self._monitor.state_dict(),
            "squares": {key: float(square) for key, square in self._squares.items()},
            "shift": {region: float(most) for region, most in self._shift.items()},
            "before": {names[parameter]: before for parameter, before in self._before.items()},
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned, as if the update had just been made."""
        device = state["points"].device
        self._open(state["start"], device)
        self.rows, self._measured, self._unseen = list(state["rows"]), state["measured"], set(state["unseen"])
        self._points.copy_(state["points"])
        self._weights = state["weights"]
        self._monitor.load_state_dict(state["monitor"])
        self._squares, self._shift = (
            {key: torch.tensor(number, dtype=torch.float64, device=device) for key, number in state[name].items()}
            for name in ("squares", "shift")
        )
        for name, parameter in self._model.named_parameters():
            self._before[parameter].copy_(state["before"][name])
