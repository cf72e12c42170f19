"""Measure norms of activations and of the gradients that reach them, per group and region."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.routing.regions import Region, places
from gradroute.routing.sites import Site

DEFAULT = "default"  # the group of data points with membership -1
SUMS = ("points", "activation", "routed", "unrouted")


@dataclass(frozen=True)
class Norms:
    """Measurements of one group in one region.

    points: data points, or tokens where membership is per token; a mixed one counts for each group by its share.
    activation: root mean square over points of the L2 norm of the region's activations.
    routed: root mean square over passes of the L2 norm, over all of the group's points in the batch, of the gradient
        through the mask, which is that of the task loss.
    unrouted: the same of the gradients that bypass the mask, which are those of penalties.
    """

    group: str
    region: str
    points: float
    activation: float
    routed: float
    unrouted: float


class Watched:
    """Recorder for use inside `torch.func.vmap`; monitors outside `attach` to the tensors in `seen`."""

    def __init__(self) -> None:
        self.seen: dict[Site, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """Record activation, branch and membership; return the branch, which the rest of the model must use."""
        branch = activation.view_as(activation)
        self.seen[site] = (activation, branch, membership)
        return branch


class OneGroup:
    """Adapter to a `Monitor` for a pass over data points of all groups in which the loss of one group counts.

    Args:
        membership: the data points' groups, by which activations are recorded.
        first: whether this is the update's first pass; activations, equal in all passes, are recorded only then.
    """

    def __init__(self, monitor: "Monitor", membership: torch.Tensor, first: bool) -> None:
        self.monitor, self.membership, self.first = monitor, membership, first

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """Watch as a `Monitor` does; gradients through the mask count for `membership`, the group of the loss."""
        branch = activation.view_as(activation)
        self.monitor.attach(site, activation, branch, self.membership, loss=membership, first=self.first)
        return branch


@dataclass(frozen=True)
class _AtSite:
    """Regions at a site.

    alike: for each width of a region, the regions' numbers and their units, one region's after the other's.
    first: for every region, 1 if this is its first site, else 0.
    """

    alike: Sequence[tuple[torch.Tensor, slice | torch.Tensor]]
    first: torch.Tensor


class Monitor:
    """Sums that a `Router` fills if the monitor is passed to `route`. They stay on the device until `norms` is called.

    Each sum stays at its address, so that an update which was captured in a CUDA graph adds to it when it is replayed.

    In a region with several sites, norms are over all of them and points are counted at the first.

    Args:
        regions: resolved regions, as `Router.regions`.
        groups: the groups' names, as `Router.groups`.

    `continues`: whether the next pass is over a further part of the same batch, as in gradient accumulation.
    """

    def __init__(self, regions: Mapping[str, Region], groups: Sequence[str]) -> None:
        self.regions, self.groups, self.continues = dict(regions), list(groups), False
        self._sums: dict[str, torch.Tensor] = {}  # by what: (regions, groups + 1)
        self._passes: torch.Tensor | None = None  # (regions,)
        self._sites: dict[Site, _AtSite] = {}

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """Add an activation now and its gradients when they arrive; return what the rest of the model must use."""
        branch = activation.view_as(activation)
        self.attach(site, activation, branch, membership)
        return branch

    def attach(
        self, site: Site, activation: torch.Tensor, branch: torch.Tensor, membership: torch.Tensor,
        replica: int | None = None, loss: torch.Tensor | None = None, first: bool = True,
    ) -> None:  # fmt: skip
        """Add an activation, and when they arrive its gradients and those of `branch`, the view that leads to the mask.

        With `replica`, both tensors are stacked, and only that replica's part is added. `loss` and `first`: see
        `OneGroup`.
        """
        arrived: list[torch.Tensor] = []

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if replica is None else tensor[replica]

        def routed(gradient: torch.Tensor) -> None:
            arrived.append(own(gradient))
            self._add("routed", site, arrived[0], membership if loss is None else loss)

        def total(gradient: torch.Tensor) -> None:  # runs after `routed`; its gradient is the sum of all
            mine = own(gradient)
            self._add("unrouted", site, mine - arrived.pop() if arrived else mine, membership)

        if first:
            self._add("activation", site, own(activation.detach()), membership)
            if not self.continues:
                begun = self._at(site, activation.device).first
                if self._passes is None:
                    self._passes = torch.zeros_like(begun)
                self._passes.add_(begun)
        activation.register_hook(total)
        branch.register_hook(routed)

    def _at(self, site: Site, device: torch.device) -> _AtSite:
        """Return the regions at a site. They are found once: a captured update must copy nothing from the CPU."""
        if site not in self._sites:
            regions = list(self.regions.values())
            here = [number for number, region in enumerate(regions) if site in region.sites]
            alike = []
            for width in dict.fromkeys(len(regions[number].units) for number in here):
                numbers = [number for number in here if len(regions[number].units) == width]
                where = places([unit for number in numbers for unit in regions[number].units])
                index = where if isinstance(where, slice) else torch.tensor(where, device=device)
                alike.append((torch.tensor(numbers, device=device), index))
            first = [int(region.sites[0] == site) for region in regions]
            self._sites[site] = _AtSite(alike, torch.tensor(first, device=device))
        return self._sites[site]

    def _add(self, what: str, site: Site, tensor: torch.Tensor, membership: torch.Tensor) -> None:
        at, values = self._at(site, tensor.device), site.units_last(tensor)
        for numbers, units in at.alike:
            parts = values[..., units].unflatten(-1, (len(numbers), -1))
            # in double, since squares must not underflow; the norm needs no copy in double
            squares = torch.linalg.vector_norm(parts, dim=-1, dtype=torch.float64).square()
            self._sum(what, tensor.device).index_add_(0, numbers, self._by_group(squares, membership))
        if what == "activation" and at.alike:
            points = self._by_group(squares.new_ones(*squares.shape[:-1], 1), membership, each=True)
            self._sum("points", tensor.device).add_(points * at.first[:, None])

    def _sum(self, what: str, device: torch.device) -> torch.Tensor:
        if what not in self._sums:
            shape = len(self.regions), len(self.groups) + 1
            self._sums[what] = torch.zeros(shape, dtype=torch.float64, device=device)
        return self._sums[what]

    def _by_group(self, values: torch.Tensor, membership: torch.Tensor, each: bool = False) -> torch.Tensor:
        """Return the sums by group, `(regions, groups + 1)`, of values `(batch, …, regions)`.

        each: one value for each membership counts, instead of the sum over its positions.
        """
        groups, mixed = len(self.groups), membership.is_floating_point()
        membership = membership.to(values.device)
        if membership.dim() == int(mixed):  # one for the whole batch
            membership = membership.expand(len(values), *membership.shape)
        axes = membership.dim() - int(mixed)
        if values.dim() > axes + 1:
            values = values.flatten(axes, -2)
            values = values.select(axes, 0) if each else values.sum(axes)
        values = values.flatten(0, -2)
        if mixed:
            shares = torch.cat([membership, 1 - membership.sum(-1, keepdim=True)], -1).double().flatten(0, -2)
            return values.T @ shares
        sums = values.new_zeros(groups + 1, values.shape[-1])
        return sums.index_add(0, membership.flatten() % (groups + 1), values).T

    def reset(self) -> None:
        """Set all sums to 0, in place."""
        for sums in self._sums.values():
            sums.zero_()
        if self._passes is not None:
            self._passes.zero_()

    def norms(self) -> Iterator[Norms]:
        """Yield the norms so far, for every region and every group that occurred."""
        none = torch.zeros(len(self.regions), len(self.groups) + 1)
        found = [self._sums.get(what, none).tolist() for what in SUMS]
        begun = [1] * len(self.regions) if self._passes is None else self._passes.tolist()
        for region, passes, *rows in zip(self.regions, begun, *found, strict=True):
            for name, n, activation, routed, unrouted in zip([*self.groups, DEFAULT], *rows, strict=True):
                if n > 0:
                    by_pass = (math.sqrt(squares / max(1, passes)) for squares in (routed, unrouted))
                    yield Norms(name, region, n, math.sqrt(activation / n), *by_pass)

    def take(self, device: torch.device) -> torch.Tensor:
        """Remove and return all sums so far, `(4, regions, groups + 1)` float64, for `put`."""
        found = torch.stack([self._sum(what, device) for what in SUMS])
        for sums in self._sums.values():
            sums.zero_()
        return found

    def put(self, sums: torch.Tensor) -> None:
        """Set the sums to those that `take` returned."""
        for what, own in zip(SUMS, sums, strict=True):
            self._sum(what, own.device).copy_(own)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, for a checkpoint; waits for the device."""
        begun = [0] * len(self.regions) if self._passes is None else self._passes.tolist()
        sums = {
            (what, name): row.clone()
            for what, own in self._sums.items()
            for name, row in zip(self.regions, own, strict=True)
        }
        return {"sums": sums, "passes": dict(zip(self.regions, begun, strict=True))}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums, self._passes = {}, None
        for (what, name), row in state["sums"].items():
            self._sum(what, row.device)[list(self.regions).index(name)] = row
        if self._sums:
            device = next(iter(self._sums.values())).device
            self._passes = torch.tensor([state["passes"][name] for name in self.regions], device=device)
