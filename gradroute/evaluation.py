"""What each head reconstructs: per label, per group, before and after ablation."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.ablation import Ablation
from gradroute.routing import Region

CHUNK = 2048


@dataclass(frozen=True)
class Head:
    """One way to reconstruct: `name` and `region` are the columns of the metrics."""

    name: str
    region: str


@torch.no_grad()
def activations_at(model: nn.Module, site: str, images: torch.Tensor) -> torch.Tensor:
    """A site's activations for images `(n, pixels)`, as `(n, …, units)` float32."""
    outputs: list[torch.Tensor] = []
    handle = model.get_submodule(site).register_forward_hook(lambda m, i, output: outputs.append(output.float()))
    try:
        for chunk in images.split(CHUNK):
            model(chunk)
    finally:
        handle.remove()
    return torch.cat(outputs)


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
    sites = {region.site for modules in certificates.values() for name, region in regions.items() if name in modules}
    seen = {site: activations_at(model, site, images) for site in sites}
    heads = {Head("decoder", "all"): torch.cat([model(chunk).float() for chunk in images.split(CHUNK)])}
    for head, modules in certificates.items():
        for name, module in modules.items():
            chunks = regions[name].select(seen).split(CHUNK)
            heads[Head(head, name)] = torch.cat([module(chunk).float() for chunk in chunks])
    for ablation in ablations:
        with ablation.applied(model):
            output = torch.cat([model(chunk).float() for chunk in images.split(CHUNK)])
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
