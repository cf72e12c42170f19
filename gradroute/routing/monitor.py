"""Norms of activations and of the gradients that arrive, per group and region."""

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
    """What was measured of one group in one region.

    points: data points, or tokens where membership is per token; a mix counts each share.
    activation: root mean square over points of the L2 norm of the region's activations.
    routed: root mean square over passes of the L2 norm, over all of the group's points in the batch, of the gradient
        that came through the mask, which is the task loss's. unrouted: of all that came beside the mask: penalties.
    """

    group: str
    region: str
    points: float
    activation: float
    routed: float
    unrouted: float


class Watched:
    """Notes what a `Monitor` would watch, for monitors outside of `torch.func.vmap` to `attach` to; see `seen`."""

    def __init__(self) -> None:
        self.seen: dict[Site, tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = {}

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """Note activation, branch and membership; returns the branch, which the rest of the model must use."""
        branch = activation.view_as(activation)
        self.seen[site] = (activation, branch, membership)
        return branch


class OneGroup:
    """Notes for a `Monitor` a pass of data points of all groups, of which the loss of one alone counts.

    Args:
        membership: the groups of the data points, whose activations are noted by them.
        first: of the passes of an update; activations, which are the same in each, are noted once.
    """

    def __init__(self, monitor: "Monitor", membership: torch.Tensor, first: bool) -> None:
        self.monitor, self.membership, self.first = monitor, membership, first

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """As of a `Monitor`; what arrives through the mask is noted by `membership`, which is whose loss counts."""
        branch = activation.view_as(activation)
        self.monitor.attach(site, activation, branch, self.membership, loss=membership, first=self.first)
        return branch


class Monitor:
    """Sums that a `Router` fills when it is given to `route`. They stay on the device until `norms` is called.

    Of a region with several sites the norms are over all of them, the points those of the first.

    Args:
        regions: resolved regions, as `Router.regions`.
        groups: the groups' names, as `Router.groups`.

    `continues`: the next pass is of a further part of the last one's batch, whose gradients are accumulated.
    """

    def __init__(self, regions: Mapping[str, Region], groups: Sequence[str]) -> None:
        self.regions, self.groups, self.continues = dict(regions), list(groups), False
        self._sums: dict[tuple[str, str], torch.Tensor] = {}  # (what, region) to (groups + 1,)
        self._passes = dict.fromkeys(self.regions, 0)

    def watch(self, site: Site, activation: torch.Tensor, membership: torch.Tensor) -> torch.Tensor:
        """Add a site's activation now and its gradients when they come; returns what the rest of the model must use."""
        branch = activation.view_as(activation)
        self.attach(site, activation, branch, membership)
        return branch

    def attach(
        self, site: Site, activation: torch.Tensor, branch: torch.Tensor, membership: torch.Tensor,
        replica: int | None = None, loss: torch.Tensor | None = None, first: bool = True,
    ) -> None:  # fmt: skip
        """Add an activation, and when they come the gradients of it and of `branch`, the view that leads to the mask.

        With `replica`, both tensors are a stack's, and only that one's part is added. `loss` and `first`: see
        `OneGroup`.
        """
        arrived: list[torch.Tensor] = []

        def own(tensor: torch.Tensor) -> torch.Tensor:
            return tensor if replica is None else tensor[replica]

        def routed(gradient: torch.Tensor) -> None:
            arrived.append(own(gradient))
            self._add("routed", site, arrived[0], membership if loss is None else loss)

        def total(gradient: torch.Tensor) -> None:  # comes after `routed`, of which it is the sum with all others
            mine = own(gradient)
            self._add("unrouted", site, mine - arrived.pop() if arrived else mine, membership)

        if first:
            self._add("activation", site, own(activation.detach()), membership)
            for name, region in self.regions.items():
                if site == region.sites[0] and not self.continues:
                    self._passes[name] += 1
        activation.register_hook(total)
        branch.register_hook(routed)

    def _add(self, what: str, site: Site, tensor: torch.Tensor, membership: torch.Tensor) -> None:
        for name, region in self.regions.items():
            if site in region.sites:
                squares = region.at(tensor, site).double().square().sum(-1)  # double: a square must not vanish
                self._count(what, name, squares, membership)
                if what == "activation" and site == region.sites[0]:
                    self._count("points", name, torch.ones_like(squares), membership)

    def _count(self, what: str, region: str, values: torch.Tensor, membership: torch.Tensor) -> None:
        """Add values `(batch, …)` up by group; points count one for each membership, not for each position."""
        groups, mixed = len(self.groups), membership.is_floating_point()
        membership = membership.to(values.device)
        if membership.dim() == int(mixed):  # the whole batch's
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
        if (what, region) in self._sums:
            self._sums[what, region].add_(sums)  # in place: see `gradroute.training.history.EpochTerms`
        else:
            self._sums[what, region] = sums

    def norms(self) -> Iterator[Norms]:
        """What was measured so far, for every region and every group that came."""
        none = torch.zeros(len(self.groups) + 1)
        for region in self.regions:
            points, *sums = (self._sums.get((what, region), none).tolist() for what in SUMS)
            passes = max(1, self._passes[region])
            for name, n, activation, routed, unrouted in zip([*self.groups, DEFAULT], points, *sums, strict=True):
                if n > 0:
                    roots = (math.sqrt(activation / n), math.sqrt(routed / passes), math.sqrt(unrouted / passes))
                    yield Norms(name, region, n, *roots)

    def take(self, device: torch.device) -> torch.Tensor:
        """All sums so far, `(4, regions, groups + 1)`, which this monitor then has no more: for `put`."""
        none = torch.zeros(len(self.groups) + 1, dtype=torch.float64, device=device)
        sums = [self._sums.pop((what, region), none) for what in SUMS for region in self.regions]
        return torch.stack(sums).view(len(SUMS), len(self.regions), -1)

    def put(self, sums: torch.Tensor) -> None:
        """Have sums such as `take` gives."""
        for what, own in zip(SUMS, sums, strict=True):
            self._sums |= {(what, region): row.clone() for region, row in zip(self.regions, own, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """What was summed so far, to go on from."""
        return {"sums": dict(self._sums), "passes": dict(self._passes)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._sums, self._passes = dict(state["sums"]), dict(state["passes"])
