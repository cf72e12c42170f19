"""Attach routes to a model from outside, for one forward pass, and leave it as it was found."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradroute.routing.mask import mask_gradient
from gradroute.routing.regions import Region, site_widths


class Router:
    """Gradient weights of every group at every site of a model.

    Args:
        model: any module; its sites are its submodules' names.
        regions: name to region.
        groups: the groups' names; data points carry their position in this list.
        routes: group to region to weight, any finite real; a pair that is not named has weight 1.
        example: an input of the model, used once to find the sites' widths.

    Raises: UserError for an unknown site, a site not reached, or units outside it.
    """

    def __init__(
        self,
        model: nn.Module,
        regions: Mapping[str, Region],
        groups: Sequence[str],
        routes: Mapping[str, Mapping[str, float]],
        example: torch.Tensor,
    ) -> None:
        self.model, self.regions, self.groups = model, dict(regions), list(groups)
        widths = site_widths(model, regions, example)
        self.masks = {site: torch.ones(len(groups), n, device=example.device) for site, n in widths.items()}
        for group, weights in routes.items():
            for region_name, weight in weights.items():
                region = self.regions[region_name]
                self.masks[region.site][self.groups.index(group), list(region.units)] *= weight
        self._unrouted = {site for site, mask in self.masks.items() if bool((mask == 1).all())}

    @contextmanager
    def route(self, group_index: torch.Tensor) -> Iterator[dict[str, torch.Tensor]]:
        """Route the forward passes made inside: data point `i` belongs to group `group_index[i]`, `(batch,)` int64.

        Yields the sites' activations as they are *before* the mask, filled in by the forward pass: penalties read
        them, so that only what is computed from the model's own output is routed.
        """
        activations: dict[str, torch.Tensor] = {}
        modules = dict(self.model.named_modules())
        handles = []
        try:
            for site, table in self.masks.items():
                handles.append(modules[site].register_forward_hook(self._hook(site, table, group_index, activations)))
            yield activations
        finally:
            for handle in handles:
                handle.remove()

    def _hook(
        self, site: str, table: torch.Tensor, group_index: torch.Tensor, activations: dict[str, torch.Tensor]
    ) -> Any:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            activations[site] = output
            if site in self._unrouted:
                return output
            between = [1] * (output.dim() - 2)
            return mask_gradient(output, table[group_index].view(len(group_index), *between, -1))

        return hook
