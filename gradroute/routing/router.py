"""Attach routes to a model from outside for a forward pass, and restore the model afterwards."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError, unknown
from gradroute.routing.mask import mask_gradient
from gradroute.routing.monitor import Monitor, OneGroup, Watched
from gradroute.routing.regions import Region, resolve
from gradroute.routing.routes import Routes, read_routes
from gradroute.routing.sites import Site, by_module, hooked
from gradroute.routing.tables import Pass, Table

Tables = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # weights and forward factors by site name


class Router:
    """Weights of each group's gradient in each region of a model, set on its activations (GR section 3).

    Args:
        model: any module; its sites are its submodules' names.
        regions: name to region.
        groups: the groups' names; a data point's group is its index in this list.
        routes: group to region to weight or `Route`; a pair that is not named has weight 1. Where regions overlap,
            weights multiply.
        example: an input of the model (a tuple of several, a mapping of keyword arguments), used to find the sites.

    Attributes: `regions`, resolved to names and indices; `found`, what the example showed of every site.
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
        self._values: dict[tuple[str, str], tuple[float, float]] = {}
        self._attached, self._hooks, self._active = 0, ExitStack(), list[Pass]()
        self._replica = False
        self.at_step(0)

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
        return self._values.get((group, region), (1.0, 1.0))[0]

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
        values = {pair: route.at(step) for pair, route in self.routes.items()}
        if values == self._values:
            return
        self._values = values
        for table, site in {self._tables[site.name]: site for site in self.sites}.items():
            weight, forward = (torch.ones_like(table.weight, device="cpu") for _ in range(2))
            for (group, name), value in values.items():
                if site in self.regions[name].sites:
                    for rows, factor in zip((weight, forward), value, strict=True):
                        rows[self.groups.index(group), list(self.regions[name].units)] *= factor
            table.moved = tuple(
                tuple(group for group, row in enumerate(rows) if bool((row != 1).any())) for rows in (weight, forward)
            )
            table.weight.copy_(weight)  # in place, so that a compiled model sees it
            table.forward.copy_(forward)

    def tables(self) -> Tables:
        """Return the current weights and forward factors of every site, each `(groups + 1, units)`, the last row 1."""
        return {name: (table.weight, table.forward) for name, table in self._tables.items()}

    @contextmanager
    def using(self, tables: Tables) -> Iterator[None]:
        """Route by other tables than the router's own, such as those of one replica of a stack inside `vmap`."""
        kept, self._replica = self._tables, True
        every = tuple(range(len(self.groups)))
        self._tables = {
            name: Table(*pair, (every, every if kept[name].forwarded else ())) for name, pair in tables.items()
        }
        try:
            yield
        finally:
            self._tables, self._replica = kept, False

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Keep the hooks on the model for all `route` blocks inside; `torch.compile` needs it, as it freezes hooks."""
        if not self._attached:
            hooks = {module: self._hook(sites) for module, sites in by_module(self.sites).items()}
            self._hooks.enter_context(hooked(self.model, hooks))
        self._attached += 1
        try:
            yield
        finally:
            self._attached -= 1
            if not self._attached:
                self._hooks.close()

    @contextmanager
    def route(
        self, membership: torch.Tensor | int | str, monitor: Monitor | OneGroup | Watched | None = None
    ) -> Iterator[dict[str, torch.Tensor]]:
        """Route the forward passes inside the block; `backward` may run after it.

        Yields the sites' activations by name, *before* the mask, filled in by the forward pass. Penalties read these,
        so that they are not routed; only losses of the model's output are. Routes on one site, of this router or of
        another, multiply.

        Args:
            membership: the group of each data point, int64 `(batch,)` or, per token, `(batch, tokens)`; -1 is the
                default route, all weights 1. One number or name is for the whole batch. Floats `(batch, groups)` or
                `(batch, tokens, groups)` mix the groups' weights; the rest up to 1 is the default route's share.
            monitor: measures norms at every region in this pass and in its backward pass.

        Raises: UserError if gradients are disabled, the membership does not fit, a site is not reached or requires no
            gradient, or a masked activation is modified in place.
        """
        if not torch.is_grad_enabled():
            raise UserError("route: gradients are disabled, so nothing is routed; leave no_grad or inference mode")
        entry = Pass(self._checked(membership), monitor)
        self._active.append(entry)
        try:
            with self.attached():
                yield entry.activations
            for site in self.sites:
                if site.name not in entry.activations:
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
        finally:
            self._active = [other for other in self._active if other is not entry]

    def _checked(self, membership: torch.Tensor | int | str) -> torch.Tensor:
        if isinstance(membership, str):
            if membership not in self.groups:
                raise unknown("group", membership, self.groups)
            membership = self.groups.index(membership)
        given, groups = torch.as_tensor(membership), len(self.groups)
        mixed = given.is_floating_point()
        right = f"int64 numbers of the {groups} groups, -1 for none, or float shares (batch, {groups})"
        if given.dtype == torch.bool or (mixed and (given.dim() < 1 or given.shape[-1] != groups)):
            raise UserError(f"membership of {given.dtype} and shape {tuple(given.shape)}: give {right}")
        valid = given.isfinite() if mixed else (given >= -1) & (given < groups)
        try:
            fits = bool(valid.all())
        except RuntimeError:  # inside vmap, values cannot be read
            fits = True
        if not fits:
            raise UserError(f"membership has values out of range: give {right}")
        return given

    def _hook(self, sites: list[Site]) -> Callable[[nn.Module, Any, Any], Any]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Any:
            for site in sites if self._active else ():
                output = site.replace(output, self._masked(site, site.read(output)))
            return output

        return hook

    def _masked(self, site: Site, activation: torch.Tensor) -> torch.Tensor:
        table, masked, changed = self._tables[site.name], activation, self.found[site.name].changed
        if not torch.is_grad_enabled():
            raise UserError(
                f"site '{site.name}': gradients were disabled inside route; evaluate outside of it, and checkpoint "
                "activations with use_reentrant=False"
            )
        for entry in self._active:
            entry.activations[site.name] = activation
            # inside vmap, a tensor does not report that it requires a gradient
            if (table.routed or entry.monitor) and not (activation.requires_grad or self._replica):
                raise UserError(f"site '{site.name}': its output requires no gradient; unfreeze a parameter before it")
            if entry.monitor:
                masked = entry.monitor.watch(site, masked, entry.membership)
            if table.forwarded:
                factor = site.spread(entry.of(table, forward=True), activation.shape)
                masked = masked * factor.to(activation.dtype)
            if table.routed:
                masked = mask_gradient(masked, site.spread(entry.of(table), activation.shape), changed)
        return masked.clone() if changed and not table.routed else masked
