"""The loss terms of GR App. B, each with a name, so that every one can be recorded and claimed about."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from gradroute.routing import Monitor, Router
from gradroute.schema import LossesConfig


@dataclass(frozen=True)
class Term:
    """One measurement's identity: which head, on which group, for which region, by which function."""

    head: str
    group: str
    region: str
    metric: str


Terms = dict[Term, tuple[torch.Tensor, float | torch.Tensor]]  # value and weight of each
UNLABELLED = "unlabelled"


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32 if they came in less, such as from autocast; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def group_means(values: torch.Tensor, group_index: torch.Tensor, groups: int) -> torch.Tensor:
    """Mean of `values` `(batch,)` within each group, `(groups,)`; an empty group contributes 0."""
    zeros = values.new_zeros(groups)
    sums = zeros.index_add(0, group_index, values)
    counts = zeros.index_add(0, group_index, torch.ones_like(values))
    return sums / counts.clamp(min=1)


def l1_penalty(activation: torch.Tensor) -> torch.Tensor:
    """Mean over images of the L1 norm of `(batch, units)`."""
    return activation.abs().sum(-1).mean()


def correlation_penalty(activations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean |correlation| over all pairs of units in different regions; each region `(batch, units)`.

    Units are standardised with the unbiased standard deviation and the products divided by the batch size, as
    published; a constant unit, or a batch of one image, contributes 0.
    """
    if len(activations) < 2 or len(activations[0]) < 2:
        return activations[0].new_zeros(()) if activations else torch.zeros(())
    batch = activations[0].shape[0]
    z = [(a - a.mean(0)) / a.std(0).clamp(min=1e-8) for a in activations]
    blocks = [(a.T @ b / batch).abs() for a, b in combinations(z, 2)]
    total = torch.stack([block.sum() for block in blocks]).sum()
    return total / sum(block.numel() for block in blocks)


def absolute_error(reconstruction: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean absolute error of each image, `(batch,)`, for both `(batch, pixels)`."""
    return (at_least_float32(reconstruction) - images).abs().mean(1)


class Objective:
    """The training loss of a routed model: every term's value and weight, from one pass of the decoder.

    Args:
        partial: some points carry no label (-1). They are a group `unlabelled`, and each group's mean then weighs its
            share of the batch, times the number of groups: who is unlabelled must not change what is learned.
        skip_absent: leave the term of a group out when the batch has none of its points, instead of giving it value 0.
        several_decoders: the model also takes the group numbers, to choose each image's decoder.
    """

    def __init__(
        self, model: nn.Module, certificates: nn.ModuleDict, router: Router, losses: LossesConfig,
        partial: bool = False, skip_absent: bool = False, several_decoders: bool = False,
    ) -> None:  # fmt: skip
        self.model, self.certificates, self.router, self.losses = model, certificates, router, losses
        self.partial, self.skip_absent, self.several_decoders = partial, skip_absent, several_decoders
        self.monitor: Monitor | None = None

    def __call__(self, images: torch.Tensor, group_index: torch.Tensor) -> Terms:
        """Terms for images `(batch, pixels)` with group numbers `(batch,)`; the loss is the sum of weight × value.

        Each group's mean absolute error has weight 1, or `losses.groups`, so that with two groups the sum is about
        twice the overall mean (GR released code). Penalties are unrouted: they read the sites before the mask.
        """
        with self.router.route(group_index, self.monitor) as activations:
            inputs = (images, group_index) if self.several_decoders else (images,)
            reconstruction = self.model(*inputs)
        terms = self._task_terms(absolute_error(reconstruction, images), group_index)
        for name, certificate in self.certificates.items():
            seen = self.router.regions[name].select(activations).detach()
            error = absolute_error(certificate(seen.flatten(1)), images).mean()
            terms[Term("certificate", "all", name, "mae")] = (error, 1.0)
        regions = {
            name: at_least_float32(region.select(activations)).flatten(0, -2)
            for name, region in self.router.regions.items()
            if self.losses.correlation or self.losses.l1.get(name)
        }
        for name, weight in self.losses.l1.items():
            if weight:
                terms[Term("penalty", "all", name, "l1")] = (l1_penalty(regions[name]), weight)
        if self.losses.correlation:
            value = correlation_penalty(list(regions.values()))
            terms[Term("penalty", "all", "all", "correlation")] = (value, self.losses.correlation)
        return terms

    def _task_terms(self, per_image: torch.Tensor, group_index: torch.Tensor) -> Terms:
        groups = self.router.groups
        names = [*groups, UNLABELLED] if self.partial else groups
        means = group_means(per_image, group_index % len(names), len(names))
        counts = torch.bincount(group_index % len(names), minlength=len(names))
        present = counts.tolist() if self.skip_absent else [1] * len(names)  # tolist waits for the device
        shares = counts * (len(groups) / len(per_image)) if self.partial else torch.ones(len(names))
        weights = [shares[i] * self.losses.groups.get(name, 1.0) for i, name in enumerate(names)]
        return {
            Term("decoder", name, "all", "mae"): (means[i], weights[i]) for i, name in enumerate(names) if present[i]
        }
