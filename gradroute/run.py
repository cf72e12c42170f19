"""One run: its steps, from a checked configuration to its folder."""

import io
import time
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from gradroute import provenance, records
from gradroute.ablation import Ablation
from gradroute.datasets import Images
from gradroute.evaluation import Head, activations_at
from gradroute.ledger import Ledger
from gradroute.losses import CertificateObjective, Objective, Term
from gradroute.progress import Progress
from gradroute.records import RunFolder
from gradroute.schema import Config
from gradroute.setup import Measurement, Setup
from gradroute.training import Task

CURVE_POINTS = 6  # test evaluations during training; more would cost over 3 % of a short run
ENCODINGS_PER_LABEL = 50


class Run:
    """A run in its folder; its methods are the steps. Those that train yield their tasks and go on when they are done.

    Raises: UserError for every mistake in the configuration or the data, before anything is written.
    """

    def __init__(self, config: Config, data: Images | None = None, stacked: int = 1, quiet: bool = False) -> None:
        """Check everything, then make the folder.

        data: the data set, if it is at hand. stacked: how many runs are trained together. quiet: only its log tells.
        """
        self.config, self.setup = config, Setup(config, data)
        self.ablations: list[Ablation] = []
        self.order = torch.Generator().manual_seed(config.seed)
        self.steps_done = 0
        self.stacked = stacked
        self.error: Exception | None = None
        self.folder = RunFolder(self.config, self._facts())
        self.progress = Progress(self.folder.log, quiet)

    def _facts(self) -> dict[str, Any]:
        device, hardware = self.setup.device, provenance.hardware()
        if device.type == "cuda":
            hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["threads"] = torch.get_num_threads()
        facts = {"dataset_sha256": self.setup.data.sha256, "hardware": hardware, "device": str(device)}
        return facts | {"stacked": self.stacked}

    def _record(self, split: str, measured: Measurement) -> None:
        group, head, metric, value = measured
        self.folder.add(self.steps_done, split, group, head.name, head.region, metric, value)

    def _evaluate(self) -> dict[Head, torch.Tensor]:
        heads = self.setup.heads(self.ablations)
        measurements = list(self.setup.test_errors(heads))
        for measured in [*measurements, *self.setup.test_scores(measurements)]:
            self._record("test", measured)
        self.folder.write_metrics()
        return heads

    def _task(self, title: str, objective: Objective, **options: Any) -> Task:
        points, trainer = len(self.setup.data.train_images), self.config.trainer
        return Task(title, objective, points=points, trainer=trainer, order=self.order, **options)

    def train(self) -> Iterator[Task]:
        """Train the model and its certificates together under the routes."""
        trainer, setup, objective = self.config.trainer, self.setup, self.setup.objective()
        images, routed = setup.data.train_images, setup.groups.routed
        every = -(-trainer.epochs // CURVE_POINTS)
        settings = self.config.ledger
        ledger = Ledger(setup.router, setup.parts.parameter_router, routed, settings.window, settings.every)
        started = time.monotonic()

        def before_update(step: int, chosen: torch.Tensor) -> None:
            setup.router.at_step(step)
            setup.parts.parameter_router.at_step(step)
            if settings.enabled:
                objective.monitor = ledger.begin(step, routed[chosen])

        def on_epoch(epoch: int, step: int, means: dict[Term, float]) -> None:
            self.steps_done = step
            for term, mean in means.items():
                self._record("train", (term.group, Head(term.head, term.region), term.metric, mean))
            if epoch % every == 0 and epoch < trainer.epochs:
                precise = setup.precision == torch.bfloat16
                with torch.autocast(setup.device.type, torch.bfloat16, enabled=precise):
                    self._evaluate()
            self.progress.epoch(epoch, trainer.epochs, means)

        yield self._task(
            "train",
            objective,
            batch=lambda chosen: (images[chosen], routed[chosen]),
            on_epoch=on_epoch,
            before_update=before_update,
            parameter_router=setup.parameter_router,
            group_index=routed if trainer.batches == "by_group" else None,
        )
        self.folder.manifest["train_seconds"] = round(time.monotonic() - started, 1)
        if settings.enabled:
            ledger.close(self.steps_done)
            self.folder.write_ledger(ledger.rows)

    def certify(self) -> Iterator[Task]:
        """Train a fresh certificate per region on the frozen encoding: a weak one must not pass for a clean split."""
        setup, images = self.setup, self.setup.data.train_images
        epochs = self.config.trainer.epochs
        for name in self.config.losses.certificates:
            certificate, region = setup.add_fresh(name), setup.regions[name]
            encodings = region.select(activations_at(setup.model, region.sites, images)).flatten(1)
            yield self._task(
                f"certify {name}",
                CertificateObjective(certificate, name),
                batch=lambda chosen, encodings=encodings: (encodings[chosen], images[chosen]),
                on_epoch=lambda epoch, step, means: self.progress.epoch(epoch, epochs, means),
            )

    def ablate(self) -> Iterable[Task]:
        """Prepare the ablations that `evaluate` applies: of one region, of several together, or of each in turn."""
        self.ablations = self.setup.ablations()
        return ()

    def evaluate(self) -> Iterable[Task]:
        """Measure every head in float32 and write metrics, weights and what the report draws."""
        setup, heads = self.setup, self._evaluate()
        for measured in setup.test_norms():
            self._record("test", measured)
        self.folder.write_metrics()
        modules = {"model": setup.model, "certificates": setup.certificates, "fresh_certificates": setup.fresh}
        tensors = {f"{prefix}.{k}": v for prefix, module in modules.items() for k, v in module.state_dict().items()}
        tensors = {k: v.cpu().contiguous() for k, v in tensors.items()}
        records.write_atomically(self.folder.path / "model.safetensors", save(tensors))
        self._write_samples(heads)
        final = records.final_rows(self.folder.rows)
        named = [row for row in final if row["group"] in [*setup.groups.names, "all"]]
        kept = ("group", "head", "region", "metric", "unit", "value")
        self.folder.write_json("summary.json", {"headline": [{k: row[k] for k in kept} for row in named]})
        return ()

    def _write_samples(self, heads: dict[Head, torch.Tensor]) -> None:
        """One image per label through every head; encodings sorted by label; the mask: all the report needs."""
        setup, data = self.setup, self.setup.data
        by_label = [torch.nonzero(data.test_labels == label).flatten() for label in data.labels]
        first = torch.cat([found[:1] for found in by_label])
        many = torch.cat([found[:ENCODINGS_PER_LABEL] for found in by_label])
        arrays: dict[str, torch.Tensor] = {
            "image_labels": data.test_labels[first],
            "encoding_labels": data.test_labels[many],
            "images": data.test_images[first],
        }
        arrays |= {f"head/{head.name}/{head.region}": output[first] for head, output in heads.items()}
        seen = activations_at(setup.model, setup.router.sites, data.test_images[many])
        for site in setup.router.sites:
            arrays[f"encoding/{site.name}"] = site.units_last(seen[site.name]).contiguous()
            arrays[f"mask/{site.name}"] = setup.router.masks[site.name]
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{k: v.cpu().numpy() for k, v in arrays.items()})
        records.write_atomically(self.folder.path / "samples.npz", buffer.getvalue())
        self.folder.write_json("figures.json", self._names())

    def _names(self) -> dict[str, Any]:
        """What the report must know beside the numbers."""
        setup, data = self.setup, self.setup.data
        owner = {label: setup.groups.test[data.test_labels == label].unique().tolist() for label in data.labels}
        return {
            "groups": setup.groups.names,
            "regions": {
                name: {"sites": [s.name for s in region.sites], "units": list(region.units)}
                for name, region in setup.regions.items()
            }
            | {name: {"sites": [], "units": []} for name in setup.parts.parameter_router.regions},
            "label_noun": data.label_noun,
            "labels": {g: [x for x in data.labels if owner[x] == [i]] for i, g in enumerate(setup.groups.names)},
            "shape": list(data.shape),
            "ablation": self.config.ablation.kind,
        }

    def report(self) -> Iterable[Task]:
        """Draw the plots and write the page from what is on disk."""
        from gradroute.page import run_page
        from gradroute.report import draw

        draw(self.folder.path)
        run_page(self.folder.path)
        return ()

    def end(self, error: BaseException | None = None) -> None:
        """Record how the run ended, and the checksum of every file."""
        if error is None:
            self.progress.headline(self.folder.path, records.final_rows(self.folder.rows), self.setup.groups.names)
            self.folder.finish("finished")
            return
        self.error = error if isinstance(error, Exception) else None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        interrupted = isinstance(error, KeyboardInterrupt | SystemExit)
        self.folder.log(f"ended: {reason}")
        self.folder.finish("interrupted" if interrupted else f"failed ({reason})")
