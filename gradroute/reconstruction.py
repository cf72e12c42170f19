"""The problem of an autoencoder: images, reconstructed by the decoder and by a certificate per region (GR App. B)."""

from collections.abc import Iterable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import nn

from gradroute import datasets
from gradroute.ablation import Ablation
from gradroute.errors import UserError
from gradroute.evaluation import (
    CHUNK,
    Head,
    activations_at,
    errors,
    image_errors,
    localization,
    reconstructions,
    region_norms,
)
from gradroute.groups import Part, assign
from gradroute.loading import build, read_regions
from gradroute.losses import Batch, CertificateObjective, ReconstructionObjective
from gradroute.memory import require_memory
from gradroute.problem import Measurement, Probe, Problem, settle_precision
from gradroute.routing import Router, Site
from gradroute.schema import Config

NORM_POINTS = 2048  # test points whose norms are measured
ENCODINGS_PER_LABEL = 50  # in the report


class Reconstruction(Problem):
    """Images to reconstruct. Raises: UserError for every mistake in the configuration or the data."""

    data: datasets.Images

    def __init__(self, config: Config, data: datasets.Images | None = None) -> None:
        """`data` is what `datasets.load` would give, if it is at hand."""
        self.config = config
        self.device = settle_precision(config)
        data = data or datasets.load(config.dataset, config.trainer.train_limit, config.trainer.test_limit)
        self.data = data.to(self.device)
        self.sha256, self.points = data.sha256, len(data.train_images)
        groups = assign(
            config.routing,
            Part(self.data.train_images, self.data.train_labels, self.data.train_columns),
            Part(self.data.test_images, self.data.test_labels, self.data.test_columns),
            config.seed,
        )
        self.names, self.routed, self.test_groups = groups.names, groups.routed, groups.test
        decoders = config.model.decoders
        if decoders not in (1, len(self.names)) or (decoders > 1 and bool((self.routed < 0).any())):
            right = f"1, or {len(self.names)}, the number of groups, with every point labelled"
            raise UserError(f"model.decoders={decoders}: must be {right}")
        require_memory(config, self.data.train_images, trains=True)
        torch.manual_seed(config.seed)
        self.parts = build(config, self.names, self.data.train_images[:1])
        self.certificates, self.fresh = self.parts.certificates, nn.ModuleDict()
        self.try_ablations()

    def objective(self) -> ReconstructionObjective:
        """The training loss."""
        partial = bool((self.routed == -1).any())
        by_group = self.parameter_router is not None or self.config.trainer.batches == "by_group"
        several = self.config.model.decoders > 1
        parts = (self.model, self.certificates, self.router, self.config.losses)
        return ReconstructionObjective(*parts, partial, by_group, several)

    def batch(self, chosen: torch.Tensor) -> Batch:
        """Images `(batch, pixels)` and their group numbers."""
        return self.data.train_images[chosen], self.routed[chosen]

    def modules(self) -> dict[str, nn.Module]:
        """Everything that was trained, by its prefix in saved weights."""
        return {"model": self.model, "certificates": self.certificates, "fresh_certificates": self.fresh}

    def more(self) -> list[str]:
        """The regions that have a fresh certificate."""
        return list(self.fresh)

    def make(self, name: str) -> nn.Module:
        """A fresh certificate of a region, untrained; the seed alone decides its start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1 + len(self.fresh))
            self.fresh[name] = self.parts.certificate(self.config.model, name, self.data.train_images[:1])
        return self.fresh[name]

    def expected(self) -> list[str]:
        """The regions of which a finished run has a fresh certificate."""
        return self.config.losses.certificates if "certify" in self.config.steps else []

    def probes(self) -> Iterator[Probe]:
        """A fresh certificate per region on the frozen encoding: a weak one must not pass for a clean split."""
        for name in self.config.losses.certificates:
            region, images = self.router.regions[name], self.data.train_images
            certificate = self.fresh[name] if name in self.fresh else self.make(name)
            encodings = region.select(activations_at(self.model, region.sites, images)).flatten(1)

            def batch(chosen: torch.Tensor, encodings: torch.Tensor = encodings) -> Batch:
                return encodings[chosen], self.data.train_images[chosen]

            yield Probe(f"certify {name}", CertificateObjective(certificate, name), batch)

    def example(self) -> torch.Tensor:
        """A few test images."""
        return self.data.test_images[:16]

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Activations of the training images at some sites, by name."""
        return activations_at(self.model, sites, self.data.train_images)

    def heads(
        self, ablations: list[Ablation], images: torch.Tensor, group_index: torch.Tensor
    ) -> dict[Head, torch.Tensor]:
        """Every head's reconstruction of images `(n, pixels)` with group numbers `(n,)`."""
        certificates = {"certificate": self.certificates, "fresh_certificate": self.fresh}
        which = group_index if self.config.model.decoders > 1 else None
        return reconstructions(self.model, certificates, self.router.regions, ablations, images, which)

    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Errors of the heads on every group and every label of the test images, and the localization scores."""
        labels = self.data.test_labels
        parts = {name: self.test_groups == i for i, name in enumerate(self.names)}
        parts |= {f"{self.data.label_noun}_{label}": labels == label for label in self.data.labels}
        by_image = image_errors(partial(self.heads, ablations), self.data.test_images, self.test_groups)
        measured = list(errors(by_image, parts))
        yield from measured
        yield from self._scores(measured)

    def _scores(self, measured: Iterable[Measurement]) -> Iterator[Measurement]:
        """Each group's localization from the certificates' errors, and the least of them, for the group `all`."""
        rows, scores = list(measured), list[float]()
        for number, group in enumerate(self.names):
            chosen = self._mean_image_errors[self.test_groups == number]
            if not len(chosen):
                continue
            baseline = float(chosen.mean())
            found = [v for g, head, metric, v in rows if (g, head.name, metric) == (group, "certificate", "mse")]
            if len(found) > 1:
                scores.append(localization([baseline - value for value in found], baseline))
                yield group, Head("score", "all"), "localization", scores[-1]
        if scores:
            yield "all", Head("score", "all"), "localization", min(scores)

    @cached_property
    def _mean_image_errors(self) -> torch.Tensor:
        """Squared error of the training data's mean image on each test image, `(n,)`."""
        mean = self.data.train_images.mean(0)
        return torch.cat([(chunk - mean).square().mean(1) for chunk in self.data.test_images.split(CHUNK)])

    def measure_once(self) -> Iterator[Measurement]:
        """Per image, root mean square: how active each region is on each group, and the gradient it would get."""
        regions, _ = read_regions(self.config.routing)
        plain = Router(self.model, regions, self.names, {}, self.data.test_images[:1])
        images, groups = self.data.test_images[:NORM_POINTS], self.test_groups[:NORM_POINTS]
        for norms in region_norms(plain, images, groups, self.config.model.decoders > 1):
            head = Head("monitor", norms.region)
            yield norms.group, head, "activation_norm", norms.activation
            yield norms.group, head, "gradient_norm", norms.routed / norms.points**0.5

    def samples(self, ablations: list[Ablation]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """One image per label through every head; encodings sorted by label; the masks; the names of it all."""
        data = self.data
        by_label = [torch.nonzero(data.test_labels == label).flatten() for label in data.labels]
        first = torch.cat([found[:1] for found in by_label])
        many = torch.cat([found[:ENCODINGS_PER_LABEL] for found in by_label])
        arrays: dict[str, torch.Tensor] = {
            "image_labels": data.test_labels[first],
            "encoding_labels": data.test_labels[many],
            "images": data.test_images[first],
        }
        heads = self.heads(ablations, data.test_images[first], self.test_groups[first])
        arrays |= {f"head/{head.name}/{head.region}": output for head, output in heads.items()}
        seen = activations_at(self.model, self.router.sites, data.test_images[many])
        for site in self.router.sites:
            arrays[f"encoding/{site.name}"] = site.units_last(seen[site.name]).contiguous()
            arrays[f"mask/{site.name}"] = self.router.masks[site.name]
        owner = {label: self.test_groups[data.test_labels == label].unique().tolist() for label in data.labels}
        names = {
            "label_noun": data.label_noun,
            "labels": {g: [x for x in data.labels if owner[x] == [i]] for i, g in enumerate(self.names)},
            "shape": list(data.shape),
        }
        return arrays, names
