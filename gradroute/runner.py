"""One run from a checked configuration to its folder; and a finished run back from its folder."""

import io
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

from gradroute import datasets, models, records
from gradroute.ablation import Ablation
from gradroute.evaluation import Head, activations_at, errors, reconstructions
from gradroute.loading import build
from gradroute.losses import Objective, Term
from gradroute.progress import Progress
from gradroute.records import RunFolder
from gradroute.routing import Groups, Router
from gradroute.schema import Config
from gradroute.training import fit, pick_device, pick_precision

CURVE_POINTS = 6  # test evaluations during training; more would cost over 3 % of a short run
ENCODINGS_PER_LABEL = 50


class Run:
    """Everything a run needs, built and checked before anything is written; its methods are the steps.

    Raises: UserError for every mistake in the configuration or the data.
    """

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = pick_device(config.trainer.device)
        self.precision = pick_precision(config.trainer.precision, self.device)
        config.trainer.precision = "bfloat16" if self.precision == torch.bfloat16 else "float32"
        data = datasets.load(config.dataset, config.trainer.train_limit, config.trainer.test_limit)
        self.groups = Groups(
            {name: group.labels for name, group in config.routing.groups.items()},
            data.labels,
            config.routing.unassigned,
        )
        self.data = data.to(self.device)
        self.train_groups = self.groups.index(self.data.train_labels)
        torch.manual_seed(config.seed)
        self.model, self.certificates, self.regions = build(config, data.train_images.shape[1], self.device)
        example = self.data.train_images[:1]
        routes = config.routing.routes
        self.router = Router(self.model, self.regions, self.groups.names, routes, example)
        self.fresh = nn.ModuleDict()
        self.ablations: list[Ablation] = []
        self.order = torch.Generator().manual_seed(config.seed)
        self.steps_done = 0
        self.folder = RunFolder(config, self._facts())
        self.progress = Progress(self.folder.log)

    def _facts(self) -> dict[str, Any]:
        hardware = records.hardware()
        if self.device.type == "cuda":
            hardware["gpu"] = torch.cuda.get_device_name(self.device)
        hardware["threads"] = torch.get_num_threads()
        return {"dataset_sha256": self.data.sha256, "hardware": hardware, "device": str(self.device)}

    def _parts(self) -> dict[str, torch.Tensor]:
        labels = self.data.test_labels
        index = self.groups.index(labels)
        parts = {name: index == i for i, name in enumerate(self.groups.names)}
        return parts | {f"{self.data.label_noun}_{label}": labels == label for label in self.data.labels}

    def _record_terms(self, step: int, means: dict[Term, float]) -> None:
        for term, mean in means.items():
            self.folder.add(step, "train", term.group, term.head, term.region, term.metric, mean)

    def _evaluate(self) -> dict[Head, torch.Tensor]:
        heads = reconstructions(
            self.model,
            {"certificate": self.certificates, "fresh_certificate": self.fresh},
            self.regions,
            self.ablations,
            self.data.test_images,
        )
        for group, head, metric, value in errors(self.data.test_images, heads, self._parts()):
            self.folder.add(self.steps_done, "test", group, head.name, head.region, metric, value)
        self.folder.write_metrics()
        return heads

    def train(self) -> None:
        """Train the model and its certificates together under the routes."""
        trainer = self.config.trainer
        objective = Objective(self.model, self.certificates, self.router, self.config.losses)
        every = -(-trainer.epochs // CURVE_POINTS)
        started = time.monotonic()

        def on_epoch(epoch: int, step: int, means: dict[Term, float]) -> None:
            self.steps_done = step
            self._record_terms(step, means)
            if epoch % every == 0 and epoch < trainer.epochs:
                autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == torch.bfloat16)
                with autocast:
                    self._evaluate()
            self.progress.epoch(epoch, trainer.epochs, means)

        parameters = [*self.model.parameters(), *self.certificates.parameters()]
        images, groups = self.data.train_images, self.train_groups
        with self.progress.running("train"):
            fit(objective, parameters, images, groups, trainer, self.precision, self.order, on_epoch)
        self.folder.manifest["train_seconds"] = round(time.monotonic() - started, 1)

    def certify(self) -> None:
        """Train a fresh certificate per region on the frozen encoding: a weak one must not pass for a clean split."""
        trainer = self.config.trainer
        pixels = self.data.train_images.shape[1]
        for name in self.config.losses.certificates:
            region = self.regions[name]
            self.fresh[name] = models.build_certificate(self.config.model, len(region.units), pixels).to(self.device)
        sites = {self.regions[name].site for name in self.fresh}
        seen = {site: activations_at(self.model, site, self.data.train_images) for site in sites}
        for name, certificate in self.fresh.items():
            encodings = self.regions[name].select(seen)
            rows = torch.arange(len(encodings), device=self.device)

            def objective(
                inputs: torch.Tensor,
                chosen: torch.Tensor,
                certificate: nn.Module = certificate,
                name: str = name,
            ) -> dict[Term, tuple[torch.Tensor, float]]:
                error = (certificate(inputs).float() - self.data.train_images[chosen]).abs().mean()
                return {Term("fresh_certificate", "all", name, "mae"): (error, 1.0)}

            def on_epoch(epoch: int, step: int, means: dict[Term, float]) -> None:
                self.progress.epoch(epoch, trainer.epochs, means)

            with self.progress.running(f"certify {name}"):
                fit(
                    objective,
                    certificate.parameters(),
                    encodings,
                    rows,
                    trainer,
                    self.precision,
                    self.order,
                    on_epoch,
                )

    def ablate(self) -> None:
        """Prepare the ablations that `evaluate` applies: of one region, or of each in turn."""
        ablation = self.config.ablation
        for name in [ablation.region] if ablation.region else list(self.regions):
            region = self.regions[name]
            values = torch.zeros(len(region.units), device=self.device)
            if ablation.kind == "mean":
                seen = {region.site: activations_at(self.model, region.site, self.data.train_images)}
                values = region.select(seen).flatten(0, -2).mean(0)
            self.ablations.append(Ablation(name, region, values))

    def evaluate(self) -> None:
        """Measure every head in float32 and write metrics, weights and what the report draws."""
        heads = self._evaluate()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"certificates.{k}": v for k, v in self.certificates.state_dict().items()}
        tensors |= {f"fresh_certificates.{k}": v for k, v in self.fresh.state_dict().items()}
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        records.write_atomically(self.folder.path / "model.safetensors", save(tensors))
        self._write_samples(heads)
        final = records.final_rows(self.folder.rows)
        named = [row for row in final if row["group"] in self.groups.names]
        kept = ("group", "head", "region", "metric", "unit", "value")
        self.folder.write_json("summary.json", {"headline": [{k: row[k] for k in kept} for row in named]})

    def _write_samples(self, heads: dict[Head, torch.Tensor]) -> None:
        """One image per label through every head; encodings sorted by label; the mask: all the report needs."""
        labels = self.data.test_labels
        by_label = [torch.nonzero(labels == label).flatten() for label in self.data.labels]
        first = torch.cat([found[:1] for found in by_label])
        many = torch.cat([found[:ENCODINGS_PER_LABEL] for found in by_label])
        arrays: dict[str, torch.Tensor] = {
            "image_labels": labels[first],
            "encoding_labels": labels[many],
            "images": self.data.test_images[first],
        }
        arrays |= {f"head/{head.name}/{head.region}": output[first] for head, output in heads.items()}
        for site, mask in self.router.masks.items():
            arrays[f"encoding/{site}"] = activations_at(self.model, site, self.data.test_images[many])
            arrays[f"mask/{site}"] = mask
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{k: v.cpu().numpy() for k, v in arrays.items()})
        records.write_atomically(self.folder.path / "samples.npz", buffer.getvalue())
        shown = {
            "groups": self.groups.names,
            "regions": {name: {"site": r.site, "units": list(r.units)} for name, r in self.regions.items()},
            "label_noun": self.data.label_noun,
            "labels": {g: self.config.routing.groups[g].labels for g in self.groups.names if g != "unassigned"},
            "shape": list(self.data.shape),
            "ablation": self.config.ablation.kind,
        }
        self.folder.write_json("figures.json", shown)

    def report(self) -> None:
        """Draw the plots from what is on disk."""
        from gradroute.report import draw

        draw(self.folder.path)


def execute(config: Config) -> Path:
    """Run a checked configuration's steps; returns the run folder. Raises: UserError before anything is written."""
    run = Run(config)
    steps: dict[str, Callable[[], None]] = {
        "train": run.train,
        "certify": run.certify,
        "ablate": run.ablate,
        "evaluate": run.evaluate,
        "report": run.report,
    }
    try:
        for step in config.steps:
            run.folder.log(f"step {step}")
            steps[step]()
    except BaseException as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        run.folder.log(f"ended: {reason}")
        run.folder.finish("interrupted" if interrupted else f"failed ({reason})")
        raise
    run.progress.headline(run.folder.path, records.final_rows(run.folder.rows), run.groups.names)
    run.folder.finish("finished")
    return run.folder.path
