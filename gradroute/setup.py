"""What a checked configuration stands for: data, groups, model, routes, ablations; and what is measured of them."""

from collections.abc import Iterable, Iterator
from functools import cached_property, partial

import torch
from torch import nn

from gradroute import ablation, datasets
from gradroute.ablation import Ablation
from gradroute.devices import pick_device, pick_precision
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
from gradroute.groups import Groups, Part, assign
from gradroute.loading import build, read_regions
from gradroute.losses import ReconstructionObjective
from gradroute.memory import require_memory
from gradroute.routing import ParameterRouter, Router
from gradroute.schema import Config

NORM_POINTS = 2048  # test points whose norms are measured
Measurement = tuple[str, Head, str, float]  # group or label, head, metric, value


def settle_precision(config: Config) -> torch.device:
    """The device to train on; `auto` in the configuration's precision becomes its name. Raises: UserError."""
    device = pick_device(config.trainer.device)
    config.trainer.precision = pick_precision(config.trainer.precision, device)
    return device


class Setup:
    """Everything a run needs, built and checked; nothing is written and nothing is trained.

    Raises: UserError for every mistake in the configuration or the data.
    """

    def __init__(self, config: Config, data: datasets.Images | None = None) -> None:
        """`data` is what `datasets.load` would give, if it is at hand."""
        self.config = config
        self.device = settle_precision(config)
        data = data or datasets.load(config.dataset, config.trainer.train_limit, config.trainer.test_limit)
        self.data = data.to(self.device)
        self.groups: Groups = assign(
            config.routing,
            Part(self.data.train_images, self.data.train_labels, self.data.train_columns),
            Part(self.data.test_images, self.data.test_labels, self.data.test_columns),
            config.seed,
        )
        decoders = config.model.decoders
        if decoders not in (1, len(self.groups.names)) or (decoders > 1 and bool((self.groups.routed < 0).any())):
            right = f"1, or {len(self.groups.names)}, the number of groups, with every point labelled"
            raise UserError(f"model.decoders={decoders}: must be {right}")
        require_memory(config, self.data.train_images, trains=True)
        torch.manual_seed(config.seed)
        self.parts = build(config, self.groups.names, self.data.train_images[:1])
        self.model, self.certificates = self.parts.model, self.parts.certificates
        self.router, self.regions = self.parts.router, self.parts.router.regions
        self.fresh = nn.ModuleDict()
        if "ablate" in config.steps and config.ablation.kind in ("reinitialise", "remove"):
            for tried in self.ablations():  # what cannot be done must be said before hours of training
                with tried.applied(self.model):
                    pass

    @property
    def parameter_router(self) -> ParameterRouter | None:
        """The router of parameters, if there are regions of them."""
        return self.parts.parameter_router if self.parts.parameter_router.regions else None

    def at_step(self, step: int) -> None:
        """Have the routes be what they are at an update, from 0."""
        self.router.at_step(step)
        self.parts.parameter_router.at_step(step)

    def objective(self) -> ReconstructionObjective:
        """The training loss."""
        partial = bool((self.groups.routed == -1).any())
        by_group = self.parameter_router is not None or self.config.trainer.batches == "by_group"
        several = self.config.model.decoders > 1
        parts = (self.model, self.certificates, self.router, self.config.losses)
        return ReconstructionObjective(*parts, partial, by_group, several)

    def add_fresh(self, region: str) -> nn.Module:
        """A new certificate of the region, to be trained on the frozen encoding; the seed alone decides its start."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.config.seed + 1 + len(self.fresh))
            certificate = self.parts.certificate(self.config.model, region, self.data.train_images[:1])
        self.fresh[region] = certificate
        return certificate

    def modules(self) -> dict[str, nn.Module]:
        """Everything that was trained, by its prefix in saved weights."""
        return {"model": self.model, "certificates": self.certificates, "fresh_certificates": self.fresh}

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of everything that was trained, by name, on the CPU."""
        named = {
            f"{prefix}.{k}": v for prefix, module in self.modules().items() for k, v in module.state_dict().items()
        }
        return {name: tensor.cpu().contiguous() for name, tensor in named.items()}

    def ablations(self) -> list[Ablation]:
        """The configured ablations: of one region, of several together, or of each in turn."""
        given = self.config.ablation.region
        if given is None:
            return [self._ablation(name) for name in self.config.routing.regions]
        return [ablation.together([self._ablation(name) for name in ([given] if isinstance(given, str) else given)])]

    def _ablation(self, name: str) -> Ablation:
        kind, seed = self.config.ablation.kind, self.config.seed
        router = self.router if name in self.regions else self.parts.parameter_router
        if kind == "zero":
            return ablation.zero(name, router)
        if kind == "reinitialise":
            return ablation.reinitialise(name, router, seed)
        assert isinstance(router, Router)  # by the configuration's checks
        if kind == "remove":
            return ablation.remove(name, router, self.data.test_images[:16])
        seen = activations_at(self.model, self.regions[name].sites, self.data.train_images)
        return ablation.mean(name, router, seen) if kind == "mean" else ablation.resample(name, router, seen, seed)

    def heads(
        self, ablations: list[Ablation], images: torch.Tensor, group_index: torch.Tensor
    ) -> dict[Head, torch.Tensor]:
        """Every head's reconstruction of images `(n, pixels)` with group numbers `(n,)`."""
        certificates = {"certificate": self.certificates, "fresh_certificate": self.fresh}
        which = group_index if self.config.model.decoders > 1 else None
        return reconstructions(self.model, certificates, self.regions, ablations, images, which)

    def test_errors(self, ablations: list[Ablation]) -> Iterator[Measurement]:
        """Errors of the heads on every group and every label of the test images."""
        labels = self.data.test_labels
        parts = {name: self.groups.test == i for i, name in enumerate(self.groups.names)}
        parts |= {f"{self.data.label_noun}_{label}": labels == label for label in self.data.labels}
        reconstruct = partial(self.heads, ablations)
        yield from errors(image_errors(reconstruct, self.data.test_images, self.groups.test), parts)

    def test_scores(self, measured: Iterable[Measurement]) -> Iterator[Measurement]:
        """Each group's localization from the certificates' errors, and the least of them, for the group `all`."""
        rows, scores = list(measured), list[float]()
        for number, group in enumerate(self.groups.names):
            chosen = self._mean_image_errors[self.groups.test == number]
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

    def test_norms(self) -> Iterator[Measurement]:
        """Per image, root mean square: how active each region is on each group, and the gradient it would get."""
        regions, _ = read_regions(self.config.routing)
        plain = Router(self.model, regions, self.groups.names, {}, self.data.test_images[:1])
        images, groups = self.data.test_images[:NORM_POINTS], self.groups.test[:NORM_POINTS]
        for norms in region_norms(plain, images, groups, self.config.model.decoders > 1):
            head = Head("monitor", norms.region)
            yield norms.group, head, "activation_norm", norms.activation
            yield norms.group, head, "gradient_norm", norms.routed / norms.points**0.5
