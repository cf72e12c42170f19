"""Evaluate every head on images: per label, per group, before and after ablation."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.routing import Monitor, Region, Router, Site, observed
from gradroute.routing.ablation import Ablation

CHUNK = 2048  # images in one forward pass
CONVOLVED = 256  # the same for convolutional models, whose activations are larger
ByImage = Mapping[tuple["Head", str], torch.Tensor]  # a measure's value for each image, `(n,)`, by head and metric
Measures = Mapping[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]]  # by name; see `Measure`


@dataclass(frozen=True)
class Head:
    """An output that is measured, such as a certificate's. `name` and `region` are columns of the metrics."""

    name: str
    region: str


def chunk_size(images: torch.Tensor) -> int:
    """Return how many images, `(n, pixels)` or `(n, channels, height, width)`, fit in one forward pass."""
    return CHUNK if images.dim() < 4 else CONVOLVED


@torch.no_grad()
def activations_at(
    model: nn.Module, sites: Iterable[Site], images: torch.Tensor, size: int | None = None,
    called: Callable[..., torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:  # fmt: skip
    """Return float32 activations of all data points, such as images `(n, pixels)`, at some sites, by site name.

    Args:
        size: data points in one forward pass; `chunk_size` of the images if None.
        called: a part of the model that reaches the sites; None is all of it.
    """
    sites, chunks = list(sites), list[dict[str, torch.Tensor]]()
    with observed(model, sites, copies=True) as activations:
        for chunk in images.split(size or chunk_size(images)):
            (called or model)(chunk)
            chunks.append({name: activation.float() for name, activation in activations.items()})
    return {site.name: torch.cat([chunk[site.name] for chunk in chunks], site.batch_axis) for site in sites}


def sites_of(regions: Iterable[Region]) -> list[Site]:
    """Return every site of the regions once."""
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
    """Return every head's float32 output for the images, `(n, pixels)` or `(n, classes)`.

    Args:
        certificates: modules by region, for each head's name.
        which: number of the decoder of each image, `(n,)`, if the model has several.
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
) -> ByImage:  # fmt: skip
    """Return every measure of every head on every image, `(n,)`, by head and metric.

    The images are split into chunks, so that the outputs for all of them are never in memory together.

    Args:
        heads: maps images and their group numbers to every head's output.
        targets: what the outputs are compared with, images or labels `(n,)`.
        measures: the measures by metric.
    """
    found: dict[tuple[Head, str], list[torch.Tensor]] = {}
    parts = (tensor.split(CHUNK) for tensor in (images, targets, group_index))
    for chunk, wanted, groups in zip(*parts, strict=True):
        for head, output in heads(chunk, groups).items():
            for metric, measure in measures.items():
                found.setdefault((head, metric), []).append(measure(output, wanted))
    return {key: torch.cat(chunks) for key, chunks in found.items()}


def errors(by_image: ByImage, parts: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, Head, str, float]]:
    """Yield the means of the result of `image_errors` over every part of the images.

    Args:
        by_image: errors `(n,)` by head and metric.
        parts: boolean mask `(n,)` of each group or label, by name; a part without images is left out.

    Yields: the part's name, the head, the metric and its value.
    """
    there = {name: part.cpu() for name, part in parts.items()}  # on the CPU, where each mean is read at no cost
    counted = {name: part for name, part in there.items() if bool(part.any())}
    for (head, metric), each in by_image.items():
        values = each.cpu()
        for name, part in counted.items():
            yield name, head, metric, float(values[part].mean())


def region_norms(
    router: Router, loss: Callable[[], torch.Tensor], group_index: torch.Tensor
) -> Iterator[tuple[str, Head, str, float]]:
    """Yield the norms at every region of a `router` without routes, for data points with group numbers `(n,)`.

    `loss` runs the data points through the model and returns the sum of their losses. `gradient_norm` is the L2 norm of
    that sum's gradient over a group's points, root mean square: how strongly the group would train the region without
    routing. `activation_norm` is that of the activations. Gradients of parameters do not change.

    Yields: the group's name, head `monitor` with the region, the metric and its value.
    """
    monitor = Monitor(router.regions, router.groups)
    with torch.enable_grad(), router.route(group_index, monitor) as activations:
        loss().backward(inputs=list(activations.values()))
    for norms in monitor.norms():
        head = Head("monitor", norms.region)
        yield norms.group, head, "activation_norm", norms.activation
        yield norms.group, head, "gradient_norm", norms.routed / norms.points**0.5


def localization(advantages: Sequence[float], baseline: float, own: int | None = None) -> float:
    """Return how far one region alone holds a group: 0 if the others hold as much of it, 1 if they hold nothing.

    A certificate's advantage is its gain over a prediction that does not see the image: the mean image, or the group's
    most frequent label. The score is 1 minus the mean advantage of the other regions divided by that of the group's own
    region; negative advantages count as 0. The score is 0 if the others have more, and if the own region's advantage is
    under 5 % of the baseline, because the region then holds nothing of the group. With one region it is nan. A stronger
    certificate may find more than the score shows.

    Args:
        advantages: baseline minus error on the group, for each region's certificate.
        baseline: error on the group of the prediction that does not see the image: mean squared, or the share of
            wrong labels.
        own: index of the region that the group is routed to; None to take the one with the largest advantage.
    """
    found = [max(0.0, value) for value in advantages]
    if len(found) < 2:
        return float("nan")
    held = found.pop(found.index(max(found)) if own is None else own)
    if held < 0.05 * baseline:
        return 0.0
    return max(0.0, 1 - sum(found) / len(found) / held)
