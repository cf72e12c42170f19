"""What each head makes of images: per label, per group, before and after ablation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.routing import Monitor, Norms, Region, Router, Site, observed
from gradroute.routing.ablation import Ablation

CHUNK = 2048  # images at once
CONVOLVED = 256  # where every layer keeps a picture of each
Measures = Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]  # by name; see `Measure`


@dataclass(frozen=True)
class Head:
    """One way to reconstruct or classify: `name` and `region` are the columns of the metrics."""

    name: str
    region: str


def chunk_size(images: torch.Tensor) -> int:
    """How many of such images, `(n, pixels)` or `(n, channels, height, width)`, are evaluated at once."""
    return CHUNK if images.dim() < 4 else CONVOLVED


@torch.no_grad()
def activations_at(model: nn.Module, sites: Iterable[Site], images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Activations of data points, such as images `(n, pixels)`, by site name, float32, all along its batch axis."""
    sites, chunks = list(sites), list[dict[str, torch.Tensor]]()
    with observed(model, sites, copies=True) as activations:
        for chunk in images.split(chunk_size(images)):
            model(chunk)
            chunks.append({name: activation.float() for name, activation in activations.items()})
    return {site.name: torch.cat([chunk[site.name] for chunk in chunks], site.batch_axis) for site in sites}


def sites_of(regions: Iterable[Region]) -> list[Site]:
    """Every site of the regions, once."""
    return list(dict.fromkeys(site for region in regions for site in region.sites))


@torch.no_grad()
def outputs(
    model: nn.Module,
    certificates: dict[str, nn.ModuleDict],
    regions: dict[str, Region],
    ablations: Sequence[Ablation],
    images: torch.Tensor,
    which: torch.Tensor | None = None,
) -> dict[Head, torch.Tensor]:
    """Every head's output float32 for the images, `(n, pixels)` or `(n, classes)`: decoder, certificates, ablated ones.

    `certificates` maps a head's name to its modules by region. `which` `(n,)` chooses each image's decoder, of several.
    """
    inputs = (images,) if which is None else (images, which)

    def output(module: nn.Module) -> torch.Tensor:
        chunks = zip(*(tensor.split(chunk_size(images)) for tensor in inputs), strict=True)
        return torch.cat([module(*chunk).float().flatten(1) for chunk in chunks])

    names = {name for modules in certificates.values() for name in modules}
    seen = activations_at(model, sites_of(regions[name] for name in names), images) if names else {}
    heads = {Head("decoder", "all"): output(model)}
    for head, modules in certificates.items():
        for name, module in modules.items():
            chunks = regions[name].select(seen).split(chunk_size(images))
            heads[Head(head, name)] = torch.cat([module(chunk).float().flatten(1) for chunk in chunks])
    for ablation in ablations:
        with ablation.applied(model) as ablated:
            heads[Head("decoder_ablated", ablation.name)] = output(ablated)
    return heads


@torch.no_grad()
def image_errors(
    heads: Callable[[torch.Tensor, torch.Tensor], dict[Head, torch.Tensor]],
    images: torch.Tensor, targets: torch.Tensor, group_index: torch.Tensor, measures: Measures,
) -> dict[tuple[Head, str], torch.Tensor]:  # fmt: skip
    """Every measure of every head on every image, `(n,)` by head and metric.

    In chunks, so that the outputs of all heads are never in memory together.

    Args:
        heads: takes images and their group numbers, and gives every head's output.
        targets: what outputs are measured against, images or labels `(n,)`.
        measures: by metric.
    """
    found: dict[tuple[Head, str], list[torch.Tensor]] = {}
    parts = (tensor.split(CHUNK) for tensor in (images, targets, group_index))
    for chunk, wanted, groups in zip(*parts, strict=True):
        for head, output in heads(chunk, groups).items():
            for metric, measure in measures.items():
                found.setdefault((head, metric), []).append(measure(output, wanted))
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


def region_norms(router: Router, loss: Callable[[], torch.Tensor], group_index: torch.Tensor) -> Iterator[Norms]:
    """Norms at every region of a `router` without routes, for data points with group numbers `(n,)`.

    `loss` passes them through the model and sums their losses. `routed` is the L2 norm, over a group's points, of the
    gradient of that: what each group would train the region to, were it not routed. Parameters' gradients are left
    alone.
    """
    monitor = Monitor(router.regions, router.groups)
    with torch.enable_grad(), router.route(group_index, monitor) as activations:
        loss().backward(inputs=list(activations.values()))
    yield from monitor.norms()


def localization(advantages: Sequence[float], baseline: float, own: int | None = None) -> float:
    """How much one region alone holds a group, from 0 (the others hold as much) to 1 (the others hold nothing of it).

    Each certificate's advantage is how far it beats what is predicted without a look: the mean image, or a classifier
    that always names the group's most frequent label. The score is 1 minus the mean
    advantage of the other regions over that of the group's own, negative advantages counted as 0. Where that is
    under 5 % of that error, nothing of the group is held there and the score is 0; also where the others have more.
    The score does not see what a stronger certificate would find; with one region it is nan.

    Args:
        advantages: baseline minus error on the group, of each region's certificate.
        baseline: error on the group without a look; mean squared, or the share that is wrong.
        own: place of the region that the group is routed to; None if there is none, for the best one.
    """
    found = [max(0.0, value) for value in advantages]
    if len(found) < 2:
        return float("nan")
    held = found.pop(found.index(max(found)) if own is None else own)
    if held < 0.05 * baseline:
        return 0.0
    return max(0.0, 1 - sum(found) / len(found) / held)
