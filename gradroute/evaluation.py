"""What each head reconstructs: per label, per group, before and after ablation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
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
    which: torch.Tensor | None = None,
) -> dict[Head, torch.Tensor]:
    """Every head's reconstruction `(n, pixels)` float32 of the images: decoder, certificates, ablated decoder.

    `certificates` maps a head's name to its modules by region. `which` `(n,)` chooses each image's decoder, of several.
    """
    inputs = (images,) if which is None else (images, which)

    def output(module: nn.Module) -> torch.Tensor:
        chunks = zip(*(tensor.split(CHUNK) for tensor in inputs), strict=True)
        return torch.cat([module(*chunk).float() for chunk in chunks])

    names = {name for modules in certificates.values() for name in modules}
    seen = activations_at(model, sites_of(regions[name] for name in names), images) if names else {}
    heads = {Head("decoder", "all"): output(model)}
    for head, modules in certificates.items():
        for name, module in modules.items():
            chunks = regions[name].select(seen).flatten(1).split(CHUNK)
            heads[Head(head, name)] = torch.cat([module(chunk).float() for chunk in chunks])
    for ablation in ablations:
        with ablation.applied(model) as ablated:
            heads[Head("decoder_ablated", ablation.name)] = output(ablated)
    return heads


@torch.no_grad()
def image_errors(
    reconstruct: Callable[[torch.Tensor, torch.Tensor], dict[Head, torch.Tensor]],
    images: torch.Tensor, group_index: torch.Tensor,
) -> dict[tuple[Head, str], torch.Tensor]:  # fmt: skip
    """Mean squared and mean absolute error of every head on every image, `(n,)` by head and metric (`mse`, `mae`).

    In chunks, so that the reconstructions `(n, pixels)` of all heads are never in memory together. `reconstruct` takes
    images and their group numbers.
    """
    found: dict[tuple[Head, str], list[torch.Tensor]] = {}
    for chunk, groups in zip(images.split(CHUNK), group_index.split(CHUNK), strict=True):
        for head, reconstruction in reconstruct(chunk, groups).items():
            difference = reconstruction - chunk
            found.setdefault((head, "mse"), []).append(difference.square().mean(1))
            found.setdefault((head, "mae"), []).append(difference.abs_().mean(1))
    return {key: torch.cat(chunks) for key, chunks in found.items()}


def errors(
    by_image: Mapping[tuple[Head, str], torch.Tensor], parts: Mapping[str, torch.Tensor]
) -> Iterator[tuple[str, Head, str, float]]:
    """Mean over the images of every part of what `image_errors` gives.

    Args:
        by_image: errors `(n,)` by head and metric.
        parts: name of a group or label to a boolean mask `(n,)`; a part without images is left out.

    Yields: the part's name, the head, the metric and its value.
    """
    counted = {name: part for name, part in parts.items() if bool(part.any())}
    for (head, metric), per_image in by_image.items():
        for name, part in counted.items():
            yield name, head, metric, float(per_image[part].mean())


def region_norms(
    router: Router, images: torch.Tensor, group_index: torch.Tensor, several_decoders: bool = False
) -> Iterator[Norms]:
    """Norms at every region of a `router` without routes, for images `(n, pixels)` with group numbers `(n,)`.

    `routed` is the L2 norm, over a group's images, of the gradient of the sum over images of the absolute error's mean:
    what each group would train the region to, were it not routed. Parameters' gradients are left alone.
    """
    monitor = Monitor(router.regions, router.groups)
    with torch.enable_grad(), router.route(group_index, monitor) as activations:
        inputs = (images, group_index) if several_decoders else (images,)
        loss = (router.model(*inputs).float() - images).abs().mean(1).sum()
        loss.backward(inputs=list(activations.values()))
    yield from monitor.norms()


def localization(advantages: Sequence[float], baseline: float) -> float:
    """How much one region alone holds a group, from 0 (all regions alike) to 1 (the others hold nothing of it).

    Each certificate's advantage is how far it beats the prediction of the mean image; the score is 1 minus the mean
    advantage of the other regions over that of the best one, negative advantages counted as 0. Where the best one is
    under 5 % of the mean image's error, nothing of the group is held anywhere and the score is 0. The score does not
    see which region it is, nor what a stronger certificate would find; with one region it is nan.

    Args:
        advantages: baseline minus mean squared error on the group, of each region's certificate.
        baseline: mean squared error of the mean image on the group.
    """
    ordered = sorted((max(0.0, value) for value in advantages), reverse=True)
    if len(ordered) < 2:
        return float("nan")
    if ordered[0] < 0.05 * baseline:
        return 0.0
    return 1 - sum(ordered[1:]) / (len(ordered) - 1) / ordered[0]
