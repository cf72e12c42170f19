"""The base class of tasks on images: groups by label, a routed model, certificates, measurements."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from gradroute.config.components import step_names
from gradroute.config.schema import Config
from gradroute.config.targets import build
from gradroute.data.groups import Part, assign, replaced
from gradroute.data.images.dataset import Images
from gradroute.models.base import plan_of, takes_flat_images
from gradroute.routing import Router, Site
from gradroute.routing.ablation import Ablation
from gradroute.routing.routes import owned
from gradroute.tasks import evaluation
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import ByImage, Head, activations_at, errors, image_errors, localization
from gradroute.tasks.image_checks import check_images, norm_of, require_whole_batches
from gradroute.tasks.image_memory import require_batch_memory, require_image_memory
from gradroute.tasks.image_objectives import CertificateObjective, DecoderObjective
from gradroute.tasks.own_measures import error_of, measures_of, try_measures
from gradroute.tasks.parts import assemble, read_regions
from gradroute.tasks.probe import Measurement, Probe
from gradroute.training.measures import Measure
from gradroute.training.objectives import Batch

NORM_POINTS = 2048  # test points whose norms are measured
ENCODINGS_PER_LABEL = 50  # in the report
FEW = 16  # images to try things on


class ImageTask(Task):
    """A task on images. Raises: UserError for every mistake in the configuration or the data."""

    data: Images
    default_error: ClassVar[Measure]  # on which the heads are trained
    default_measures: ClassVar[tuple[Measure, ...]]  # of every head on the test images
    scored: ClassVar[str]  # the metric from which localization is computed
    classifies: ClassVar[bool] = False  # whether the heads predict labels
    together: Callable[["ImageTask"], ByImage | None] | None = None  # see `gradroute.tasks.stacked_evaluation`

    def __init__(self, config: Config, data: Images | None = None, run: Path | None = None) -> None:
        """Use `data`, if given, instead of reading the data set."""
        super().__init__(config, data, run)
        limits = (config.trainer.train_limit, config.trainer.test_limit)
        read: Images = data or build(config.dataset, "dataset").tensors(*limits)
        self.data, self.sha256, self.points = read.to(self.device), read.sha256, len(read.train_images)
        train = Part(self.data.train_images, self.data.train_labels, self.data.train_columns)
        test = Part(self.data.test_images, self.data.test_labels, self.data.test_columns)
        groups = assign(config.routing, train, test, config.seed)
        self.names, self.routed, self.test_groups = groups.names, groups.routed, groups.test
        self.read, self.train_groups = self.data, groups.train
        if config.routing.left_out:
            places = replaced(groups, config.routing.left_out, config.seed)
            self.data, self.routed, self.train_groups = self.data.at(places), self.routed[places], groups.train[places]
        self.check_groups()
        plan = plan_of(config.model)
        self.flat = takes_flat_images(config.model)
        first = self.shaped(self.data.train_images[:1])
        require_image_memory(config, plan, self.found, self.outputs, self.device, trained=True)
        torch.manual_seed(config.seed)  # it alone determines the initial weights
        model = plan.build(**self.found).to(self.device).eval()  # a loss switches to training mode itself
        require_batch_memory(config, plan, model, first, self.outputs, self.points)
        self.parts = assemble(model, config.routing, config.losses, self.names, first, self.outputs)
        self.certificates, self.fresh = self.parts.certificates.eval(), nn.ModuleDict()
        self.train_images, self.test_images = map(self.shaped, (self.data.train_images, self.data.test_images))
        self.measures = {each.name: each for each in measures_of(config, self.found, self.default_measures)}
        self.error = error_of(config, self.found) or self.default_error
        self.built()
        self.try_ablations()
        if config.measures or config.losses.error:
            few = self.heads([], self.test_images[:FEW], self.test_groups[:FEW])[Head("decoder", "all")]
            try_measures(config, self.found, few, self.targets(train=False)[:FEW])

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that do not fit images."""
        super().check(config)
        check_images(config)

    @classmethod
    def search_objectives(cls, config: Config) -> dict[str, dict[str, str]]:
        """Return localization, and the model's error or accuracy as its cost."""
        higher = next(measure.higher_is_better for measure in cls.default_measures if measure.name == cls.scored)
        cost = {"metric": cls.scored, "goal": "higher" if higher else "lower"}
        score = {"metric": "localization", "head": "score", "group": "all", "goal": "higher"}
        return {"localization": score, "accuracy" if cls.classifies else "reconstruction": cost}

    @property
    def found(self) -> dict[str, Any]:
        """The shape of an image, the number of labels, and the groups' names."""
        return {"shape": list(self.data.shape), "classes": self.data.classes, "groups": list(self.names)}

    @property
    def outputs(self) -> int:
        """The number of outputs of a certificate: pixels of an image, or classes."""
        return self.data.classes if self.classifies else self.data.train_images.shape[1]

    @property
    def takes_groups(self) -> bool:
        """Whether the model's forward pass needs each image's group."""
        return bool(getattr(self.model, "takes_groups", False))

    def check_groups(self) -> None:
        """Raise UserError if the groups do not fit the model."""

    def shaped(self, images: torch.Tensor) -> torch.Tensor:
        """Return images `(n, pixels)` in the model's input shape: the same, or `(n, channels, height, width)`."""
        return images if self.flat else images.view(-1, *(1, *self.data.shape)[-3:])

    def built(self) -> None:
        """Check the built model and prepare it for training."""
        require_whole_batches(self.config, norm_of(self.model))

    @abstractmethod
    def targets(self, train: bool) -> torch.Tensor:
        """Return the targets of the heads' outputs, for the training or the test images."""

    @abstractmethod
    def unseen(self, chosen: torch.Tensor) -> float:
        """Return the error on the test images `chosen` `(n,)` without seeing them; see `localization`."""

    def scored_error(self, value: float) -> float:
        """Convert a value of the metric `scored` to an error."""
        return value

    def objective_options(self) -> dict[str, Any]:
        """Return the options that all training losses on images share."""
        by_group = self.parameter_router is not None or self.config.trainer.batches == "by_group"
        found = {"partial": bool((self.routed == -1).any()), "several_passes": norm_of(self.model) == "batch"}
        return {**found, "skip_absent": by_group, "error": self.error}

    @abstractmethod
    def objective(self) -> DecoderObjective:
        """Return the training loss."""

    def modules(self) -> dict[str, nn.Module]:
        """Return every trained module, by its prefix in saved weights."""
        return {"model": self.model, "certificates": self.certificates, "fresh_certificates": self.fresh, **self.made}

    def more(self) -> list[str]:
        """Return the regions that have a fresh certificate."""
        return list(self.fresh)

    def make(self, name: str) -> nn.Module:
        """Make an untrained fresh certificate of a region; its initial weights depend on the seed alone."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1 + len(self.fresh))
            self.fresh[name] = self.parts.certificate(name).eval()
        return self.fresh[name]

    def expected(self) -> list[str]:
        """Return the regions that have a fresh certificate in a finished run."""
        return self.config.losses.certificates if "certify" in step_names(self.config) else []

    def probes(self) -> Iterator[Probe]:
        """Yield the training of one fresh certificate per certified region, on the frozen encoding."""
        for name in self.config.losses.certificates:
            certificate = self.fresh[name] if name in self.fresh else self.make(name)
            objective = CertificateObjective(certificate, name, self.error)
            yield Probe(f"certify {name}", objective, self.encodings(name))

    @abstractmethod
    def encodings(self, region: str) -> Callable[[torch.Tensor], Batch]:
        """Return a function from row numbers of training images to the region's activations and the targets."""

    def example(self) -> torch.Tensor:
        """Return a few test images."""
        return self.test_images[:FEW]

    def activations(self, sites: tuple[Site, ...]) -> dict[str, torch.Tensor]:
        """Return activations of the training images at some sites, by site name."""
        return activations_at(self.model, sites, self.train_images)

    def heads(
        self, ablations: list[Ablation], images: torch.Tensor, group_index: torch.Tensor
    ) -> dict[Head, torch.Tensor]:
        """Return every head's output for images with group numbers `(n,)`."""
        certificates = {"certificate": self.certificates, "fresh_certificate": self.fresh}
        which = group_index if self.takes_groups else None
        return evaluation.outputs(self.model, certificates, self.router.regions, ablations, images, which)

    def measure(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Yield the heads' errors on every group and label of the test images, and the localization scores."""
        labels, targets = self.data.test_labels, self.targets(train=False)
        parts = {name: self.test_groups == i for i, name in enumerate(self.names)}
        parts |= {f"{self.data.label_noun}_{label}": labels == label for label in self.data.labels}
        by_image = self.together(self) if self.together else None
        data = (self.test_images, targets, self.test_groups)
        measured = list(errors(by_image or image_errors(partial(self.heads, ablations), *data, self.measures), parts))
        yield from measured
        yield from self.scores(measured)

    def scores(self, measured: Iterable[Measurement]) -> Iterator[Measurement]:
        """Yield each group's localization, from the certificates' errors, and the smallest one for the group `all`."""
        rows, found = list(measured), list[float]()
        for number, group in enumerate(self.names):
            chosen = self.test_groups == number
            if not bool(chosen.any()):
                continue
            baseline = self.unseen(chosen)
            advantages = {
                head.region: baseline - self.scored_error(value)
                for g, head, metric, value in rows
                if (g, head.name, metric) == (group, "certificate", self.scored)
            }
            if len(advantages) > 1:
                own = owned(self.router.routes, group, list(advantages))
                found.append(localization(list(advantages.values()), baseline, own))
                yield group, Head("score", "all"), "localization", found[-1]
        if found:
            yield "all", Head("score", "all"), "localization", min(found)

    def measure_once(self) -> Iterator[Measurement]:
        """Yield each region's activation norm and unrouted gradient norm on each group: root mean square per image."""
        regions, _ = read_regions(self.config.routing, self.model)
        plain = Router(self.model, regions, self.names, {}, self.test_images[:1])
        images, groups = self.test_images[:NORM_POINTS], self.test_groups[:NORM_POINTS]
        targets = self.targets(train=False)[:NORM_POINTS]
        inputs = (images, groups) if self.takes_groups else (images,)

        def loss() -> torch.Tensor:
            return self.error(self.model(*inputs).float().flatten(1), targets).sum()

        yield from evaluation.region_norms(plain, loss, groups)

    def shown(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return the data of every report on images: arrays (encodings sorted by label, masks) and names."""
        data = self.data
        many = torch.cat([(data.test_labels == x).nonzero().flatten()[:ENCODINGS_PER_LABEL] for x in data.labels])
        arrays: dict[str, torch.Tensor] = {"encoding_labels": data.test_labels[many]}
        seen = activations_at(self.model, self.router.sites, self.test_images[many])
        for site in self.router.sites:
            arrays[f"encoding/{site.name}"] = self.pictured(site.units_last(seen[site.name])).contiguous()
            arrays[f"mask/{site.name}"] = self.router.masks[site.name]
        owner = {label: self.test_groups[data.test_labels == label].unique().tolist() for label in data.labels}
        labels = {g: [x for x in data.labels if owner[x] == [i]] for i, g in enumerate(self.names)}
        names = {"label_noun": data.label_noun, "labels": labels, "shape": list(data.shape), "classes": data.classes}
        return arrays, names

    def pictured(self, units: torch.Tensor) -> torch.Tensor:
        """Reduce activations `(n, …, units)` to what the report shows."""
        return units
