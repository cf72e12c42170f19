"""Attach routes to a model from outside for a forward pass, and restore the model afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from threading import Lock
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing import memberships
from gradroute.routing.hooks import hooked
from gradroute.routing.mask import weighed
from gradroute.routing.monitor import Monitor, OneGroup, Watched
from gradroute.routing.passes import Pass, entered, held, holding
from gradroute.routing.regions import Region, resolve
from gradroute.routing.routes import Routes, read_routes, scheduled
from gradroute.routing.sites import Site, by_module
from gradroute.routing.tables import Table

Tables = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # weights and forward factors by site name

# routers with the tables that they use in this context, of `using`, outermost first
_USED: ContextVar[tuple[tuple[object, Mapping[str, Table]], ...]] = ContextVar("gradroute_tables", default=())
_ATTACHING = Lock()


class Router:
    """Weights of each group's gradient in each region of a model, set on its activations (GR section 3).

    Args:
        model: any module; its sites are its submodules' names.
        regions: name to region.
        groups: the groups' names; a data point's group is its index in this list.
        routes: group to region to weight or `Route`; a pair that is not named has weight 1. Where regions overlap,
            weights multiply.
        example: an input of the model (a tuple of several, a mapping of keyword arguments), used to find the sites.

    Attributes: `regions`, resolved to names and indices; `found`, what the example showed of every site; `values`, the
        current weight and forward factor of every (group, region) with a route, another mapping whenever one changes.
    Raises: UserError for unknown names, sites not reached, units out of range, or weights that are not finite.
    """

    def __init__(
        self, model: nn.Module, regions: Mapping[str, Region], groups: Sequence[str], routes: Routes, example: Any
    ) -> None:
        self.model, self.groups = model, list(groups)
        self.regions, self.found = resolve(model, regions, example)
        self.routes = read_routes(routes, self.groups, self.regions)
        self.sites = tuple(dict.fromkeys(site for region in self.regions.values() for site in region.sites))
        alike: dict[Any, Table] = {}  # sites of the same width and regions have the same weights
        self._tables = {site.name: alike.setdefault(self._kind(site), self._empty(site)) for site in self.sites}
        self._attached, self._hooks = 0, ExitStack()
        self._open: list[Pass] = []  # in all contexts
        self._scheduled = scheduled(self.routes)
        self._set({pair: route.at(0) for pair, route in self.routes.items()})

    def __getstate__(self) -> dict[str, Any]:
        """Leave out of a copy what is open: the copy routes nothing until it is entered itself."""
        return self.__dict__ | {"_attached": 0, "_hooks": ExitStack(), "_open": []}

    def _kind(self, site: Site) -> tuple[Any, ...]:
        shown = self.found[site.name].activation
        return (
            shown.shape[site.axis], shown.dtype, shown.device,
            *(name for name, region in self.regions.items() if site in region.sites),
        )  # fmt: skip

    def _empty(self, site: Site) -> Table:
        activation = self.found[site.name].activation
        precision = torch.promote_types(activation.dtype, torch.float32)
        size = (len(self.groups) + 1, activation.shape[site.axis])
        ones = torch.ones(size, dtype=precision, device=activation.device)
        return Table(ones, ones.clone())

    @property
    def masks(self) -> dict[str, torch.Tensor]:
        """The current gradient weights at every site, `(groups, units)`, by site name."""
        return {name: table.weight[:-1] for name, table in self._tables.items()}

    def weight(self, group: str, region: str) -> float:
        """Return the current weight of a group in a region, from that route alone."""
        return self.values.get((group, region), (1.0, 1.0))[0]

    def parts(self, region: str) -> dict[nn.Parameter, torch.Tensor]:
        """Return a region's rows of the layers that make its units, as bool masks that broadcast to the parameters.

        Empty if no such layer was found.
        """
        owned: dict[nn.Parameter, torch.Tensor] = {}
        for site in self.regions[region].sites:
            producer = self.found[site.name].producer
            for parameter in self.model.get_submodule(producer).parameters(recurse=False) if producer else ():
                mask = torch.zeros(len(parameter), dtype=torch.bool)
                mask[list(self.regions[region].units)] = True
                owned[parameter] = mask.view(-1, *[1] * (parameter.dim() - 1))
        return owned

    def at_step(self, step: int) -> None:
        """Set the weights to their value at update `step`, counted from 0; only scheduled routes change."""
        values = {pair: route.at(step) for pair, route in self._scheduled.items()}
        if any(self.values[pair] != value for pair, value in values.items()):
            self._set({**self.values, **values})

    def _set(self, values: dict[tuple[str, str], tuple[float, float]]) -> None:
        self.values = values
        for table, site in {self._tables[site.name]: site for site in self.sites}.items():
            weight, forward = (torch.ones_like(table.weight, device="cpu") for _ in range(2))
            for (group, name), value in values.items():
                if site in self.regions[name].sites:
                    for rows, factor in zip((weight, forward), value, strict=True):
                        rows[self.groups.index(group), list(self.regions[name].units)] *= factor
            table.settle(weight, forward)

    @property
    def kind(self) -> tuple[object, ...]:
        """What decides which operations a routed pass consists of; see `Table.kind`."""
        return tuple(table.kind for table in self._tables.values())

    def tables(self) -> Tables:
        """Return the current weights and forward factors of every site, each `(groups + 1, units)`, the last row 1."""
        return {name: (table.weight, table.forward) for name, table in self._tables.items()}

    @contextmanager
    def using(self, tables: Tables) -> Iterator[None]:
        """Route by other tables than the router's own, such as those of one replica of a stack inside `vmap`."""
        every = tuple(range(len(self.groups)))
        made = {
            name: Table(*pair, (every, every if self._tables[name].forwarded else ())) for name, pair in tables.items()
        }
        before = _USED.get()
        _USED.set((*before, (self, made)))
        try:
            yield
        finally:
            _USED.set(before)

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks on the model for all `route` blocks inside; `torch.compile` needs it, as it freezes hooks.

        The hooks do nothing outside of `route`, and a copy of the model does not have them.
        """
        with _ATTACHING:
            if not self._attached:
                hooks = {module: self._hook(sites) for module, sites in by_module(self.sites).items()}
                self._hooks.enter_context(hooked(self.model, hooks, everywhere=True, kept=False))
            self._attached += 1
        try:
            yield
        finally:
            with _ATTACHING:
                self._attached -= 1
                if not self._attached:
                    self._hooks.close()

    @contextmanager
    def route(
        self, membership: memberships.Membership, monitor: Monitor | OneGroup | Watched | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Route the forward passes inside the block; `backward` may run after it.

        Yields the sites' activations by name, *before* the mask, filled in by the forward pass. Penalties read these,
        so that they are not routed; only losses of the model's output are. Routes on one site, of this router or of
        another, multiply. The block holds in the context that entered it: several threads, or tasks of asyncio, can
        route one model, each its own batch.

        Args:
            membership: the group of each data point, whole numbers `(batch,)` or, per token, `(batch, tokens)`; -1 is
                the default route, all weights 1. One number or name is for the whole batch. Floats `(batch, groups)` or
                `(batch, tokens, groups)` mix the groups' weights; the rest up to 1 is the default route's share.
                Tensors, NumPy arrays or lists.
            monitor: measures norms at every region in this pass and in its backward pass; one for each thread.

        Raises: UserError if gradients are disabled, the membership does not fit, a site is not reached or requires no
            gradient, a masked activation is modified in place, or a pass of another thread has no route of its own.
        """
        if not torch.is_grad_enabled():
            raise UserError("route: gradients are disabled, so nothing is routed; leave no_grad or inference mode")
        tables = next((tables for router, tables in reversed(_USED.get()) if router is self), None)
        entry = Pass(memberships.read(membership, self.groups), monitor, self, held(self), tables)
        activations = entry.activations
        try:
            with entered(entry, self._open), self.attached():
                yield activations
            for site in self.sites:
                if site.name not in activations:
                    raise UserError(
                        f"site '{site.name}' was not reached by a forward pass inside route; call the model there, and "
                        "wrap torch.compile in attached()"
                    )
        except RuntimeError as error:
            if "_MaskGradient" in str(error) and "inplace" in str(error):
                right = "for module in model.modules(): module.inplace = False"
                fault = "an activation was modified in place after its mask"
                raise UserError(f"{fault}; before routing, run: {right}") from error
            raise

    def _hook(self, sites: list[Site]) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            passes = holding(self, self._open)
            for site in sites if passes else ():
                output = site.replace(output, self._masked(site, site.read(output), passes))
            return output

        return hook

    def _masked(self, site: Site, activation: torch.Tensor, passes: tuple[Pass, ...]) -> torch.Tensor:
        masked, changed, routed = activation, self.found[site.name].changed, False
        if not torch.is_grad_enabled():
            raise UserError(
                f"site '{site.name}': gradients were disabled inside route; evaluate outside of it, and checkpoint "
                "activations with use_reentrant=False"
            )
        for entry in passes:
            table = (entry.tables or self._tables)[site.name]
            entry.activations[site.name] = activation
            # inside vmap, a tensor does not report that it requires a gradient
            if (table.routed or entry.monitor) and not (activation.requires_grad or entry.tables):
                raise UserError(f"site '{site.name}': its output requires no gradient; unfreeze a parameter before it")
            if entry.monitor:
                masked = entry.monitor.watch(site, masked, entry.membership)
            if table.forwarded:
                factor = site.spread(entry.of(table, forward=True), activation.shape)
                masked = masked * factor.to(activation.dtype)
            if table.routed or table.forwarded:
                routed, mixed = True, entry.membership.is_floating_point()
                weight = None if table.hard and not mixed else site.spread(entry.of(table), activation.shape)
                keep = site.spread(entry.keep(table, masked.dtype), activation.shape) if mixed or table.zeros else None
                masked = weighed(masked, weight, keep, changed)
        return masked.clone() if changed and not routed else masked
