"""What problems about images share: groups by label, a routed model, a certificate per region, what is measured."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import nn

from gradroute.config.schema import Config
from gradroute.data.groups import Part, assign
from gradroute.data.images import load as datasets
from gradroute.routing import Router, Site
from gradroute.routing.ablation import Ablation
from gradroute.routing.routes import owned
from gradroute.tasks.base import Measurement, Probe, Problem, settle_precision
from gradroute.tasks.evaluation import (
    Head,
    Measures,
    activations_at,
    errors,
    image_errors,
    localization,
    outputs,
    region_norms,
)
from gradroute.tasks.image_objectives import CertificateObjective, DecoderObjective, Error
from gradroute.tasks.parts import build, read_regions
from gradroute.training.memory import require_memory
from gradroute.training.objectives import Batch

NORM_POINTS = 2048  # test points whose norms are measured
ENCODINGS_PER_LABEL = 50  # in the report


class ImageProblem(Problem):
    """Images and what to make of them. Raises: UserError for every mistake in the configuration or the data.

    Attributes: `error`, what heads are trained on; `measures`, of every head on the test images; `scored`, the one
    that localization is about.
    """

    data: datasets.Images
    error: Error
    measures: Measures
    scored: str

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
        self.check_groups()
        self.train_images, self.test_images = map(self.shaped, (self.data.train_images, self.data.test_images))
        require_memory(config, self.train_images, True, self.classes)
        torch.manual_seed(config.seed)
        self.parts = build(config, self.names, self.train_images[:1], self.classes)
        self.certificates, self.fresh = self.parts.certificates, nn.ModuleDict()
        self.built()
        self.try_ablations()

    @property
    def classes(self) -> int:
        """How many labels the model tells apart; 0 if it is no classifier."""
        return 0

    def check_groups(self) -> None:
        """Raise UserError if the model cannot have such groups."""

    def shaped(self, images: torch.Tensor) -> torch.Tensor:
        """Images `(n, pixels)` as the model takes them."""
        return images

    def built(self) -> None:
        """What else is done to the model before it is trained."""

    @abstractmethod
    def targets(self, train: bool) -> torch.Tensor:
        """What the heads' outputs are measured against, of the images to train on or to test on."""

    @abstractmethod
    def unseen(self, chosen: torch.Tensor) -> float:
        """The error on the test images `chosen` `(n,)` of a prediction without a look at them; see `localization`."""

    def scored_error(self, value: float) -> float:
        """A value of the metric `scored` as an error."""
        return value

    def objective_options(self) -> dict[str, Any]:
        """What every training loss of a kind needs to know."""
        by_group = self.parameter_router is not None or self.config.trainer.batches == "by_group"
        return {"partial": bool((self.routed == -1).any()), "skip_absent": by_group}

    @abstractmethod
    def objective(self) -> DecoderObjective:
        """The training loss."""

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
            self.fresh[name] = self.parts.certificate(self.config.model, name).eval()
        return self.fresh[name]

    def expected(self) -> list[str]:
        """The regions of which a finished run has a fresh certificate."""
        return self.config.losses.certificates if "certify" in self.config.steps else []

    def probes(self) -> Iterator[Probe]:
        """A fresh certificate per region on the frozen encoding: a weak one must not pass for a clean split."""
        for name in self.config.losses.certificates:
            certificate = self.fresh[name] if name in self.fresh else self.make(name)
            objective = CertificateObjective(certificate, name, self.error)
            yield Probe(f"certify {name}", objective, self.encodings(name))

    @abstractmethod
    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """What gives a region's activations and targets of images to train on, by their row numbers."""

    def example(self) -> torch.Tensor:
        """A few test images."""
        return self.test_images[:16]

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Activations of the training images at some sites, by name."""
        return activations_at(self.model, sites, self.train_images)

    def heads(
        self, ablations: list[Ablation], images: torch.Tensor, group_index: torch.Tensor
    ) -> dict[Head, torch.Tensor]:
        """Every head's output for images with group numbers `(n,)`."""
        certificates = {"certificate": self.certificates, "fresh_certificate": self.fresh}
        which = group_index if self.config.model.decoders > 1 else None
        return outputs(self.model, certificates, self.router.regions, ablations, images, which)

    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Errors of the heads on every group and every label of the test images, and the localization scores."""
        labels, targets = self.data.test_labels, self.targets(train=False)
        parts = {name: self.test_groups == i for i, name in enumerate(self.names)}
        parts |= {f"{self.data.label_noun}_{label}": labels == label for label in self.data.labels}
        heads = partial(self.heads, ablations)
        by_image = image_errors(heads, self.test_images, targets, self.test_groups, self.measures)
        measured = list(errors(by_image, parts))
        yield from measured
        yield from self.scores(measured)

    def scores(self, measured: Iterable[Measurement]) -> Iterator[Measurement]:
        """Each group's localization from the certificates' errors, and the least of them, for the group `all`."""
        rows, scores = list(measured), list[float]()
        for number, group in enumerate(self.names):
            chosen = self.test_groups == number
            if not bool(chosen.any()):
                continue
            baseline = self.unseen(chosen)
            found = {
                head.region: baseline - self.scored_error(value)
                for g, head, metric, value in rows
                if (g, head.name, metric) == (group, "certificate", self.scored)
            }
            if len(found) > 1:
                own = owned(self.router.routes, group, list(found))
                scores.append(localization(list(found.values()), baseline, own))
                yield group, Head("score", "all"), "localization", scores[-1]
        if scores:
            yield "all", Head("score", "all"), "localization", min(scores)

    def measure_once(self) -> Iterator[Measurement]:
        """Per image, root mean square: how active each region is on each group, and the gradient it would get."""
        regions, _ = read_regions(self.config.routing)
        plain = Router(self.model, regions, self.names, {}, self.test_images[:1])
        images, groups = self.test_images[:NORM_POINTS], self.test_groups[:NORM_POINTS]
        targets = self.targets(train=False)[:NORM_POINTS]
        inputs = (images, groups) if self.config.model.decoders > 1 else (images,)
        for norms in region_norms(plain, lambda: self.error.each(self.model(*inputs).float(), targets).sum(), groups):
            head = Head("monitor", norms.region)
            yield norms.group, head, "activation_norm", norms.activation
            yield norms.group, head, "gradient_norm", norms.routed / norms.points**0.5

    def shown(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """What every report about images draws from: encodings sorted by label, the masks; the names of it all."""
        data = self.data
        by_label = [torch.nonzero(data.test_labels == label).flatten() for label in data.labels]
        many = torch.cat([found[:ENCODINGS_PER_LABEL] for found in by_label])
        arrays: dict[str, torch.Tensor] = {"encoding_labels": data.test_labels[many]}
        seen = activations_at(self.model, self.router.sites, self.test_images[many])
        for site in self.router.sites:
            units = site.units_last(seen[site.name])
            arrays[f"encoding/{site.name}"] = self.pictured(units).contiguous()
            arrays[f"mask/{site.name}"] = self.router.masks[site.name]
        owner = {label: self.test_groups[data.test_labels == label].unique().tolist() for label in data.labels}
        names = {
            "label_noun": data.label_noun,
            "labels": {g: [x for x in data.labels if owner[x] == [i]] for i, g in enumerate(self.names)},
            "shape": list(data.shape),
        }
        return arrays, names

    def pictured(self, units: torch.Tensor) -> torch.Tensor:
        """What is kept of activations `(n, …, units)`."""
        return units
