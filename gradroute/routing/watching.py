"""Watch how much a region is used while a model serves, against its distribution at training.

with gradroute.watch(model, {"secret": Region("blocks.*.mlp.act", "512:576")}, example) as watching:
    with watching.learning():
        for batch in training_batches:
            model(batch)
    serve(model)
    print(*watching.usage(), sep="\\n")
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing.hooks import hooked
from gradroute.routing.regions import Region, resolve
from gradroute.routing.sites import Site

BINS = 20  # of equal shares of what was seen at training
KEPT = 100_000  # values from which the bins are made, at most


@dataclass(frozen=True)
class Usage:
    """How much a region was used since it was last asked.

    Attributes:
        points: data points, or tokens, that were counted.
        mean: mean use: the root mean square of the region's activations at a point.
        trained: the same at training.
        above: share of the points with a larger use than 99 of 100 points had at training; 0.01 is as at training.
        shift: largest difference of the shares of points with at most some use, live and at training, 0 to 1
            (Kolmogorov-Smirnov, to within 1 / 20, the size of a bin).
    """

    region: str
    points: int
    mean: float
    trained: float
    above: float
    shift: float


@dataclass
class _Counts:
    """What was seen of a region: values while it learns, then counts by bin, on the device."""

    edges: torch.Tensor | None = None  # (BINS,): quantiles at training, the last of them that of 0.99
    shares: torch.Tensor | None = None  # (BINS,): of what was seen at training, how much is at most each of them
    values: list[torch.Tensor] = field(default_factory=list)
    trained: float = float("nan")
    bins: torch.Tensor | None = None
    sums: torch.Tensor | None = None  # (): of use


class _Pass(threading.local):
    """What a thread has seen of its current pass: number of the pass, and squares so far, by region."""

    def __init__(self) -> None:
        self.number: dict[str, int] = {}
        self.squares: dict[str, torch.Tensor] = {}


class Watching:
    """A watch on a model's regions, until `stop`; see `watch`. It also works as a context manager."""

    def __init__(self, model: nn.Module, regions: Mapping[str, Region], example: Any, every: int = 20) -> None:
        if every < 1:
            raise UserError(f"watch: every={every}: must be 1 or more")
        self.regions, _ = resolve(model, regions, example)
        self.every, self.learns = every, False
        self._pass, self._lock = _Pass(), threading.Lock()
        self._counts = {name: _Counts() for name in self.regions}
        sites = {site.module for region in self.regions.values() for site in region.sites}
        self._hooks = hooked(model, {module: self._hook(module) for module in sites}, everywhere=True, kept=False)
        self._hooks.__enter__()

    def _hook(self, module: str) -> Callable[[nn.Module, Any, Any], None]:
        """Return a forward hook that adds up a region's squares over its sites, and counts them at the last one."""
        here = [(name, site, site == region.sites[0], site == region.sites[-1], len(region.sites))
                for name, region in self.regions.items() for site in region.sites if site.module == module]  # fmt: skip

        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            for name, site, first, last, sites in here:
                if first:
                    self._pass.number[name] = self._pass.number.get(name, -1) + 1
                if self.learns or self._pass.number[name] % self.every == 0:
                    self._see(name, site, site.read(output), first, last, sites)

        return hook

    @torch.no_grad()
    def _see(self, name: str, site: Site, activation: torch.Tensor, first: bool, last: bool, sites: int) -> None:
        seen = self.regions[name].at(activation.detach(), site)
        squares = torch.linalg.vector_norm(seen, dim=-1, dtype=torch.float32).square()
        squares = squares if first else self._pass.squares.pop(name) + squares
        if not last:
            self._pass.squares[name] = squares
            return
        self._count(name, (squares / (seen.shape[-1] * sites)).sqrt().flatten())

    def _count(self, name: str, use: torch.Tensor) -> None:
        own = self._counts[name]
        if self.learns:
            own.values.append(use)
        elif own.edges is not None:
            counted, total = torch.bincount(torch.bucketize(use, own.edges), minlength=BINS + 1), use.sum()
            with self._lock:
                own.bins = counted if own.bins is None else own.bins + counted
                own.sums = total.double() if own.sums is None else own.sums + total

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Learn the distribution at training from the model's passes inside the block; every pass counts."""
        self.learns = True
        try:
            yield
        finally:
            self.learns = False
        for name, own in self._counts.items():
            if not own.values:
                raise UserError(f"watch: no pass reached region '{name}'; run the model on training data in learning()")
            values = torch.cat(own.values)
            own.trained, own.values = float(values.double().mean()), []
            values = values[:: -(-len(values) // KEPT)].float()
            wanted = torch.tensor([*(n / BINS for n in range(1, BINS)), 0.99], device=values.device)
            own.edges = torch.quantile(values, wanted).contiguous()
            own.shares = (values[:, None] <= own.edges).float().mean(0)  # not `wanted` where many values are equal
            own.bins = own.sums = None

    def usage(self) -> list[Usage]:
        """Return how much each region was used since the last call, or since it learnt, and begin again.

        Raises: UserError if nothing was learnt.
        """
        found = []
        for name, own in self._counts.items():
            if own.edges is None or own.shares is None:
                raise UserError(f"watch: region '{name}' has no distribution at training; call learning() first, or "
                                "load what state_dict() returned")  # fmt: skip
            bins = [0] * (BINS + 1) if own.bins is None else own.bins.tolist()
            points, total = sum(bins), 0.0 if own.sums is None else float(own.sums)
            expected = own.shares.tolist()
            so_far = [sum(bins[: n + 1]) / max(1, points) for n in range(BINS)]
            shift = max(abs(a - b) for a, b in zip(so_far, expected, strict=True)) if points else float("nan")
            none = float("nan")
            found.append(Usage(name, points, total / points if points else none, own.trained,
                               bins[-1] / points if points else none, shift))  # fmt: skip
            own.bins = own.sums = None
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the distributions at training, of plain data and tensors, for a service that has no training data."""
        return {
            name: {"edges": own.edges, "shares": own.shares, "trained": own.trained}
            for name, own in self._counts.items()
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned. Raises: UserError for other regions."""
        if set(state) != set(self._counts):
            raise UserError(f"watch: the state has the regions {sorted(state)}, not {sorted(self._counts)}")
        self._counts = {
            name: _Counts(own["edges"], own["shares"], trained=own["trained"]) for name, own in state.items()
        }

    def stop(self) -> None:
        """Stop watching; the model is as it was."""
        self._hooks.__exit__(None, None, None)

    def __enter__(self) -> "Watching":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


def watch(model: nn.Module, regions: Mapping[str, Region], example: Any, every: int = 20) -> Watching:
    """Watch how much each region is used in a model's forward passes, against its distribution at training.

    Outputs and gradients do not change. Counts stay on the device until `usage` is called.

    Args:
        regions: by name; `Router.regions` or new ones.
        example: one data point in the model's input shape, as for a `Router`.
        every: count one in so many passes; 1 counts all, at a few percent of a small model's time.

    Raises: UserError for a region that does not fit the model.
    """
    return Watching(model, regions, example, every)
