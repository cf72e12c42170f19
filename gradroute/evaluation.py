"""What each head reconstructs: per label, per group, before and after ablation."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.ablation import Ablation
from gradroute.routing import Monitor, Norms, Region, Router, Site, observed

CHUNK = 2048


@dataclass(frozen=True)
class Head:
    """One way to reconstruct: `name` and `region` are the columns of the metrics."""

    name: str
    region: str


@torch.no_grad()
def activations_at(model: nn.Module, sites: Iterable[Site], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations of images `(n, pixels)` by site name, float32, all chunks along the site's batch axis."""
    sites, chunks = list(sites), list[dict[str, torch.Tensor]]()
    with observed(model, sites) as activations:
        for chunk in images.split(CHUNK):
            model(chunk)
            chunks.append({name: activation.float() for name, activation in activations.items()})
    return {site.name: torch.cat([chunk[site.name] for chunk in chunks], site.batch_axis) for site in sites}


def sites_of(regions: Iterable[Region]) -> list[Site]:
    """Every site of the regions, once."""
    return list(dict.fromkeys(site for region in regions for site in region.sites))


@torch.no_grad()
def reconstructions(
    model: nn.Module,
    certificates: dict[str, nn.ModuleDict],
    regions: dict[str, Region],
    ablations: Sequence[Ablation],
    images: torch.Tensor,
) -> dict[Head, torch.Tensor]:
    """Every head's reconstruction `(n, pixels)` float32 of the images: decoder, certificates, ablated decoder.

    `certificates` maps a head's name to its modules by region.
    """
    names = {name for modules in certificates.values() for name in modules}
    seen = activations_at(model, sites_of(regions[name] for name in names), images) if names else {}
    heads = {Head("decoder", "all"): torch.cat([model(chunk).float() for chunk in images.split(CHUNK)])}
    for head, modules in certificates.items():
        for name, module in modules.items():
            chunks = regions[name].select(seen).flatten(1).split(CHUNK)
            heads[Head(head, name)] = torch.cat([module(chunk).float() for chunk in chunks])
    for ablation in ablations:
        with ablation.applied(model) as ablated:
            output = torch.cat([ablated(chunk).float() for chunk in images.split(CHUNK)])
        heads[Head("decoder_ablated", ablation.name)] = output
    return heads


def errors(
    images: torch.Tensor, heads: dict[Head, torch.Tensor], parts: dict[str, torch.Tensor]
) -> Iterator[tuple[str, Head, str, float]]:
    """Mean squared and mean absolute error of every head on every part of the images.

    Args:
        images: the images `(n, pixels)`.
        heads: each head's reconstruction of them.
        parts: name of a group or label to a boolean mask `(n,)`; a part without images is left out.

    Yields: the part's name, the head, the metric (`mse` or `mae`) and its value.
    """
    counted = {name: part for name, part in parts.items() if bool(part.any())}
    for head, reconstruction in heads.items():
        difference = reconstruction - images
        for metric, per_image in (("mse", difference.square().mean(1)), ("mae", difference.abs().mean(1))):
            for name, part in counted.items():
                yield name, head, metric, float(per_image[part].mean())


def region_norms(router: Router, images: torch.Tensor, group_index: torch.Tensor) -> Iterator[Norms]:
    """Norms at every region of a `router` without routes, for images `(n, pixels)` with group numbers `(n,)`.

    `routed` is the L2 norm, over a group's images, of the gradient of the sum over images of the absolute error's mean:
    what each group would train the region to, were it not routed. Parameters' gradients are left alone.
    """
    monitor = Monitor(router.regions, router.groups)
    with torch.enable_grad(), router.route(group_index, monitor) as activations:
        loss = (router.model(images).float() - images).abs().mean(1).sum()
        loss.backward(inputs=list(activations.values()))
    yield from monitor.norms()
