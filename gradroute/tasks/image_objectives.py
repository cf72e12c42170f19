"""Losses of autoencoders and classifiers with a decoder and certificates (GR App. B)."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import nn

from gradroute.config.schema import LossesConfig
from gradroute.routing import OneGroup, Router
from gradroute.routing.monitor import Watched
from gradroute.training.measures import CROSS_ENTROPY, MAE, Measure, at_least_float32
from gradroute.training.objectives import (
    UNLABELLED,
    Batch,
    Objective,
    Part,
    Term,
    Terms,
    counted_parts,
    group_means,
    in_parts,
)
from gradroute.training.penalties import penalties_of


@contextmanager
def in_training(module: nn.Module) -> Iterator[None]:
    """Set a module to training mode inside, and to evaluation mode afterwards; batch norm depends on it."""
    module.train()
    try:
        yield
    finally:
        module.eval()


class CertificateObjective(Objective):
    """The error of a certificate on all images, from encodings that are not trained."""

    def __init__(self, certificate: nn.Module, region: str, error: Measure = MAE) -> None:
        self.term = Term("fresh_certificate", "all", region, error.name)
        super().__init__({self.term: 1.0})
        self.certificate, self.error = certificate, error

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield parts of a batch, each with its share of the rows."""
        for part in in_parts(batch, number):
            yield (*part, len(part[0]) / len(batch[0]))

    def forward(self, encodings: torch.Tensor, targets: torch.Tensor, share: float = 1.0) -> Terms:
        """Return the terms for encodings `(batch, …, units)`, and images `(batch, pixels)` or labels `(batch,)`.

        `share`: the rows' share of the batch that they are a part of.
        """
        with in_training(self):
            output = self.certificate(encodings)
        return {self.term: (self.error(output, targets).mean() * share, self.weights[self.term])}


class DecoderObjective(Objective):
    """The training loss of a routed encoder with a decoder and certificates (GR App. B).

    Args:
        partial: whether some points have no label (-1). They form a group `unlabelled`, and each group's mean is
            weighted by its share of the batch, times the number of groups, so that the choice of unlabelled points does
            not change what is learned.
        skip_absent: leave out the term of a group without points in the batch, instead of giving it value 0.
        several_passes: make one pass for each group in the batch, with all images under that group's mask, and count
            only the group's own images. Needed where batch statistics are computed after a site, as in batch norm: a
            group's loss then reaches the other images, too, and must pass its own mask there.
    """

    router: Router
    error: Measure
    default_error: ClassVar[Measure]

    def __init__(
        self, model: nn.Module, certificates: nn.ModuleDict, router: Router, losses: LossesConfig,
        partial: bool = False, skip_absent: bool = False, error: Measure | None = None, several_passes: bool = False,
    ) -> None:  # fmt: skip
        self.error = error or self.default_error
        names, metric = [*router.groups, UNLABELLED] if partial else router.groups, self.error.name
        weights = {Term("decoder", name, "all", metric): losses.groups.get(name, 1.0) for name in names}
        weights |= {Term("certificate", "all", name, metric): 1.0 for name in certificates}
        self.penalties = {Term("penalty", "all", p.region, p.name): p for p in penalties_of(losses)}
        weights |= {term: penalty.weight for term, penalty in self.penalties.items()}
        super().__init__(weights, router)
        self.model, self.certificates = model, certificates
        self.partial, self.skip_absent, self.several_passes = partial, skip_absent, several_passes
        self.asks_present = skip_absent or several_passes
        self.divisible = not (several_passes or any(p.whole_batch for p in self.penalties.values()))

    def _counts(self, group_index: torch.Tensor) -> torch.Tensor:
        """Return the number of images in each group, `(groups,)`, unlabelled ones last; works inside `vmap`."""
        names = len(self.router.groups) + self.partial
        return (group_index[:, None] % names == torch.arange(names, device=group_index.device)).sum(0)

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield parts of a batch, each with the batch's images per group, `(groups,)`, and its share of the rows.

        Valid only if nothing needs the whole batch at once: see `gradroute.tasks.image_checks.indivisible`.
        """
        yield from counted_parts(batch, number, lambda: self._counts(batch[-1]))

    def terms(
        self, output: torch.Tensor, targets: torch.Tensor, group_index: torch.Tensor,
        activations: Mapping[str, torch.Tensor], counts: torch.Tensor | None = None,
        share: float = 1.0,
    ) -> Terms:  # fmt: skip
        """Return the value and weight of each term, given the sites' activations before the mask.

        The loss is Σ weight × value. Each group's mean error has weight 1, or that in `losses.groups`, so that with two
        groups the sum is about twice the overall mean (GR released code). Penalties are not routed: they read the sites
        before the mask. `parts` supplies `counts` and `share`.
        """
        terms = self._task_terms(self.computed(self.error, output, targets), group_index, counts)
        for name, certificate in self.certificates.items():
            seen = self.router.regions[name].select(activations).detach()
            value = self.computed(self.error, self.computed(certificate, seen), targets).mean()
            terms[Term("certificate", "all", name, self.error.name)] = (value * share, 1.0)
        regions = {
            name: at_least_float32(region.select(activations)).flatten(0, -2)
            for name, region in self.router.regions.items()
            if any(term.region in ("all", name) for term in self.weights if term in self.penalties)
        }
        for term in [term for term in self.weights if term in self.penalties]:
            terms[term] = (self.computed(self.penalties[term], regions) * share, self.weights[term])
        return terms

    def _task_terms(self, per_image: torch.Tensor, group_index: torch.Tensor, counts: torch.Tensor | None) -> Terms:
        names = [*self.router.groups, UNLABELLED] if self.partial else self.router.groups
        groups = len(self.router.groups)
        means = group_means(per_image, group_index % len(names), len(names), counts)
        present, shares = [1] * len(names), torch.ones(len(names))
        if self.skip_absent or self.partial:
            counts = self._counts(group_index) if counts is None else counts
            shares = counts * (groups / counts.sum()) if self.partial else shares
        if self.skip_absent and self.present is not None:
            own = {number % len(names) for number in self.present}
            present = [int(number in own) for number in range(len(names))]
        elif self.skip_absent and counts is not None:
            present = counts.tolist()  # waits for the device
        terms = [Term("decoder", name, "all", self.error.name) for name in names]
        return {t: (means[i], shares[i] * self.weights[t]) for i, t in enumerate(terms) if present[i]}

    def passes(
        self, group_index: torch.Tensor, *inputs: torch.Tensor
    ) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return each image's output under its own group's mask, and the sites' activations, the same in every pass."""
        if not self.several_passes:
            with self.router.route(group_index, self.monitor) as activations:
                return self.output(*inputs), activations
        found: list[tuple[torch.Tensor, Mapping[str, torch.Tensor]]] = []
        if self.present is None:
            groups = group_index.unique()
        else:
            groups = self.constant(sorted(self.present), group_index.device).to(group_index.dtype)
        for number in groups:
            assert not isinstance(self.monitor, Watched)  # a model with batch norm is never stacked
            watcher = OneGroup(self.monitor, group_index, not found) if self.monitor else None
            with self.router.route(number, watcher) as activations:
                found.append((self.output(*inputs), activations))
        own = torch.searchsorted(groups, group_index)
        outputs = torch.stack([outputs for outputs, _ in found])
        return outputs[own, torch.arange(len(group_index), device=own.device)], found[0][1]


class ReconstructionObjective(DecoderObjective):
    """The loss of an autoencoder, from one decoder pass. `several_decoders`: the model also takes the group numbers."""

    default_error = MAE

    def __init__(self, *args: Any, several_decoders: bool = False, **options: Any) -> None:
        super().__init__(*args, **options)
        self.several_decoders = several_decoders

    def forward(self, images: torch.Tensor, group_index: torch.Tensor, *part: Any) -> Terms:
        """Return the terms for images in the model's input shape with group numbers `(batch,)`; `part`: see `parts`."""
        inputs = (images, group_index) if self.several_decoders else (images,)
        with in_training(self):
            reconstruction, activations = self.passes(group_index, *inputs)
            return self.terms(reconstruction.flatten(1), images.flatten(1), group_index, activations, *part)


class ClassificationObjective(DecoderObjective):
    """The loss of a classifier, on labels."""

    default_error = CROSS_ENTROPY

    def forward(self, images: torch.Tensor, labels: torch.Tensor, group_index: torch.Tensor, *part: Any) -> Terms:
        """Return the terms for images `(batch, channels, height, width)` with labels and group numbers `(batch,)`.

        `part`: what `parts` adds.
        """
        with in_training(self):
            logits, activations = self.passes(group_index, images)
            return self.terms(logits, labels, group_index, activations, *part)
