"""Measure norms of activations and of the gradients that reach them, per group and region."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.routing.regions import Region
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
        self._sums: dict[tuple[str, str], torch.Tensor] = {}  # (what, region) to (groups + 1,)
        self._passes: dict[str, torch.Tensor] = {}  # region to a number

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
            for name, region in self.regions.items():
                if site == region.sites[0] and not self.continues:
                    if name not in self._passes:
                        self._passes[name] = torch.zeros((), dtype=torch.int64, device=activation.device)
                    self._passes[name].add_(1)
        activation.register_hook(total)
        branch.register_hook(routed)

    def _add(self, what: str, site: Site, tensor: torch.Tensor, membership: torch.Tensor) -> None:
        for name, region in self.regions.items():
            if site in region.sites:
                # in double, since squares must not underflow; the norm needs no copy in double
                squares = torch.linalg.vector_norm(region.at(tensor, site), dim=-1, dtype=torch.float64).square()
                self._count(what, name, squares, membership)
                if what == "activation" and site == region.sites[0]:
                    self._count("points", name, torch.ones_like(squares), membership)

    def _count(self, what: str, region: str, values: torch.Tensor, membership: torch.Tensor) -> None:
        """Sum values `(batch, …)` by group; a point counts once for each membership, not for each position."""
        groups, mixed = len(self.groups), membership.is_floating_point()
        membership = membership.to(values.device)
        if membership.dim() == int(mixed):  # one for the whole batch
            membership = membership.expand(len(values), *membership.shape)
        axes = membership.dim() - int(mixed)
        if values.dim() > axes:
            values = values.flatten(axes)
            values = values[..., 0] if what == "points" else values.sum(-1)
        if mixed:
            shares = torch.cat([membership, 1 - membership.sum(-1, keepdim=True)], -1).double()
            sums = (values[..., None] * shares).flatten(0, -2).sum(0)
        else:
            sums = values.new_zeros(groups + 1).index_add(0, membership.flatten() % (groups + 1), values.flatten())
        if (what, region) not in self._sums:
            self._sums[what, region] = torch.zeros_like(sums)
        self._sums[what, region].add_(sums)

    def reset(self) -> None:
        """Set all sums to 0, in place."""
        for sums in (*self._sums.values(), *self._passes.values()):
            sums.zero_()

    def norms(self) -> Iterator[Norms]:
        """Yield the norms so far, for every region and every group that occurred."""
        none = torch.zeros(len(self.groups) + 1)
        for region in self.regions:
            points, *sums = (self._sums.get((what, region), none).tolist() for what in SUMS)
            passes = max(1, int(self._passes.get(region, 1)))
            for name, n, activation, routed, unrouted in zip([*self.groups, DEFAULT], points, *sums, strict=True):
                if n > 0:
                    roots = (math.sqrt(activation / n), math.sqrt(routed / passes), math.sqrt(unrouted / passes))
                    yield Norms(name, region, n, *roots)

    def take(self, device: torch.device) -> torch.Tensor:
        """Remove and return all sums so far, `(4, regions, groups + 1)` float64, for `put`."""
        none = torch.zeros(len(self.groups) + 1, dtype=torch.float64, device=device)
        sums = [self._sums.get((what, region), none) for what in SUMS for region in self.regions]
        found = torch.stack(sums).view(len(SUMS), len(self.regions), -1)
        for own in self._sums.values():
            own.zero_()
        return found

    def put(self, sums: torch.Tensor) -> None:
        """Set the sums to those that `take` returned."""
        for what, own in zip(SUMS, sums, strict=True):
            for region, row in zip(self.regions, own, strict=True):
                self._sums.setdefault((what, region), torch.zeros_like(row)).copy_(row)

    def state_dict(self) -> dict[str, Any]:
        """Return the sums so far, for a checkpoint; waits for the device."""
        passes = {region: int(self._passes[region]) if region in self._passes else 0 for region in self.regions}
        return {"sums": {key: sums.clone() for key, sums in self._sums.items()}, "passes": passes}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._sums = dict(state["sums"])
        device = next((sums.device for sums in self._sums.values()), torch.device("cpu"))
        self._passes = {region: torch.tensor(count, device=device) for region, count in state["passes"].items()}
