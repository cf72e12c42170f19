"""One run: its steps, from a checked configuration to its folder."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save

from gradroute.config.schema import Config
from gradroute.records import checkpoints, provenance, run_folder, run_reader
from gradroute.records.checkpoints import Checkpoint
from gradroute.records.run_folder import RunFolder, Unwritten
from gradroute.routing.ablation import Ablation
from gradroute.running import resume
from gradroute.running.figure_data import write_samples
from gradroute.running.progress import Progress
from gradroute.running.warm_start import donor, take_over
from gradroute.tasks.base import Measurement, Probe
from gradroute.tasks.evaluation import Head
from gradroute.tasks.registry import build_problem
from gradroute.training.compiling import require_compiler
from gradroute.training.devices import computing
from gradroute.training.fit import Task
from gradroute.training.ledger import Ledger
from gradroute.training.objectives import Term

Watch = Callable[[int, list[dict[str, Any]]], None]  # of the updates so far, and what was measured then
CURVE_POINTS = 6  # test evaluations during training; more would cost over 3 % of a short run


class Pruned(Exception):
    """Who looks on gave a run up: it is not finished, and is not to be gone on with."""


class Run:
    """A run in its folder; its methods are the steps. Those that train yield their tasks and go on when they are done.

    Raises: UserError for every mistake in the configuration or the data, before anything is written.
    """

    def __init__(
        self, config: Config, data: Any = None, stacked: int = 1, quiet: bool = False,
        folder: Path | None = None, checkpoint: Checkpoint | None = None, helps: bool = False,
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        """Check everything, then make the folder.

        data: the data set, if it is at hand. stacked: how many runs are trained together. quiet: only its log tells.
        folder: an unfinished run's, to go on with that very run. checkpoint: where in it; at its beginning if None.
        helps: another process's run, which alone writes there. watch: called after every evaluation while it trains.
        """
        begun = folder if checkpoint else None
        self.config, self.problem = config, build_problem(config, data, begun)
        self.donor = donor(config, self.problem.sha256)
        if config.trainer.compile and self.donor is None:
            require_compiler(self.problem.device)
        self.ablations: list[Ablation] = []
        self.order = torch.Generator().manual_seed(config.seed)
        self.steps_done = 0  # updates of the training
        self.train_began = 0.0  # seconds of the run
        self.done: list[str] = []  # steps of the run
        self.tasks_done = 0  # of the step that is next
        self.fit: Mapping[str, Any] | None = None  # where its next task was
        self.stacked, self.watch = stacked, watch
        self.error: Exception | None = None
        if folder is None:
            self.folder = RunFolder.create(self.config, self._facts())
        else:
            self.folder = (Unwritten if helps else RunFolder)(folder, run_reader.read_manifest(folder))
        self.progress = Progress(self.folder.log, quiet)
        if folder is not None:
            try:
                resume.go_on(self, checkpoint)
            except BaseException:
                self.folder.release()
                raise

    @property
    def trains(self) -> bool:
        """Whether there is a training of its own to do, which other processes can help with."""
        return "train" not in self.done and self.donor is None

    def checkpoint(self, fit: Mapping[str, Any] | None = None) -> None:
        """Keep what the run is, and where its present task is, to go on from."""
        if not isinstance(self.folder, Unwritten):
            resume.keep(self, fit)

    def end_step(self, step: str) -> None:
        """Note a step as done, and keep the run if there is another."""
        self.done, self.tasks_done = [*self.done, step], 0
        if step != self.config.steps[-1]:
            self.checkpoint()

    def _facts(self) -> dict[str, Any]:
        device, hardware = self.problem.device, provenance.hardware()
        if device.type == "cuda":
            hardware["gpu"] = torch.cuda.get_device_name(device)
        hardware["threads"] = torch.get_num_threads()
        facts = {"dataset_sha256": self.problem.sha256, "hardware": hardware, "device": str(device)}
        return facts | {"stacked": self.stacked}

    def record(self, split: str, measured: Measurement, step: int | None = None) -> None:
        """Add a row to the metrics; `step` is how many updates the training has made, if None."""
        group, head, metric, value = measured
        self.folder.add(self.steps_done if step is None else step, split, group, head.name, head.region, metric, value)

    def _evaluate(self) -> None:
        for measured in self.problem.measure(self.ablations):
            self.record("test", measured)
        self.folder.write_metrics()

    def _headline(self) -> list[dict[str, Any]]:
        """The last measurements of groups, without those of single labels."""
        final = run_folder.final_rows(self.folder.rows)
        return [row for row in final if row["group"] in [*self.problem.names, "all"]]

    def task(self, probe: Probe, **options: Any) -> Task:
        """The training of a probe in this run's order of data."""
        points, trainer = probe.points or self.problem.points, probe.trainer or self.config.trainer
        return Task(probe.title, probe.objective, probe.batch, points, trainer, self.order, **options)

    def train(self) -> Iterator[Task]:
        """Train the model, and its certificates with it, under the routes; or take a training over."""
        if self.fit is None:
            self.train_began = self.folder.seconds
            self.folder.keep(self.problem.kept())  # before the first checkpoint, which needs them
            if self.donor:
                take_over(self, self.donor)
                return
        trainer, problem, objective = self.config.trainer, self.problem, self.problem.objective()
        every = -(-trainer.epochs // CURVE_POINTS)
        settings = self.config.ledger
        routers = (problem.router, problem.parts.parameter_router)
        ledger = Ledger(*routers, problem.routed, settings.window, settings.every)

        def before_update(step: int, chosen: torch.Tensor) -> None:
            problem.at_step(step)
            if settings.enabled:
                objective.monitor = ledger.begin(step, problem.routed[chosen])

        def on_epoch(epoch: int, step: int, means: dict[Term, float]) -> None:
            self.steps_done = step
            for term, mean in means.items():
                self.record("train", (term.group, Head(term.head, term.region), term.metric, mean))
            if epoch % every == 0 and epoch < trainer.epochs:
                with computing(trainer.precision, problem.device):
                    self._evaluate()
                if self.watch:
                    self.watch(step, self._headline())
            self.progress.epoch(epoch, trainer.epochs, means)

        yield self.task(
            Probe("train", objective, problem.batch),
            on_epoch=on_epoch,
            before_update=before_update,
            parameter_router=problem.parameter_router,
            group_index=problem.routed if trainer.batches == "by_group" else None,
            compiled=trainer.compile,
            shared=True,
            watcher=ledger if settings.enabled else None,
        )
        problem.at_step(self.steps_done - 1)  # no update sets it if the run goes on from after the last one
        self.folder.manifest["train_seconds"] = round(self.folder.seconds - self.train_began, 1)
        if settings.enabled:
            ledger.close(self.steps_done)
            self.folder.write_ledger(ledger.rows)

    def certify(self) -> Iterator[Task]:
        """Train fresh certificates on the frozen model."""
        epochs = self.config.trainer.epochs
        for probe in islice(self.problem.probes(), self.tasks_done, None):
            yield self.task(probe, on_epoch=lambda epoch, step, means: self.progress.epoch(epoch, epochs, means))

    def ablate(self) -> Iterable[Task]:
        """Prepare the ablations that `evaluate` applies: of one region, of several together, or of each in turn."""
        self.ablations = self.problem.ablations()
        return ()

    def unlearn(self) -> Iterator[Task]:
        """Unlearn, by another method than ablation, from what was trained, or from what the ablation left."""
        from gradroute.steps.unlearn import unlearning

        yield from unlearning(self)

    def finetune(self) -> Iterator[Task]:
        """Train what the ablation left on a few documents."""
        from gradroute.steps.tuning import finetuning

        yield from finetuning(self)

    def relearn(self) -> Iterator[Task]:
        """Train what is left then on a few documents of what was to be forgotten."""
        from gradroute.steps.tuning import relearning

        yield from relearning(self)

    def steer(self) -> Iterable[Task]:
        """Measure what lies along a dimension of the residual stream, and steer by it."""
        from gradroute.steps.steer import steering

        steering(self)
        return ()

    def evaluate(self) -> Iterable[Task]:
        """Measure every head in float32 and write metrics, weights and what the report draws."""
        problem = self.problem
        self._evaluate()
        for measured in problem.measure_once():
            self.record("test", measured)
        self.folder.write_metrics()
        if self.config.checkpoint.keep == "weights":
            run_folder.write_atomically(self.folder.path / "model.safetensors", save(problem.tensors()))
        for name, text in problem.texts().items():
            run_folder.write_atomically(self.folder.path / name, text)
        write_samples(self.folder, problem, self.ablations)
        kept = ("group", "head", "region", "metric", "unit", "value")
        self.folder.write_json("summary.json", {"headline": [{k: row[k] for k in kept} for row in self._headline()]})
        return ()

    def report(self) -> Iterable[Task]:
        """Draw the plots and write the page from what is on disk."""
        from gradroute.reporting.page import run_page
        from gradroute.reporting.plots import draw

        draw(self.folder.path)
        run_page(self.folder.path)
        return ()

    def end(self, error: BaseException | None = None) -> None:
        """Record how the run ended, and the checksum of every file."""
        if error is None:
            checkpoints.remove(self.folder.path)
            self.progress.headline(self.folder.path, run_folder.final_rows(self.folder.rows), self.problem.names)
            self.folder.finish("finished")
            return
        self.error = error if isinstance(error, Exception) else None
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        state = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else f"failed ({reason})"
        try:
            if isinstance(error, Pruned):
                checkpoints.remove(self.folder.path)
                state = f"pruned ({reason})"
            self.folder.log(f"ended: {reason}")
            self.folder.finish(state)
        except OSError:  # the folder is full, read-only or gone, which may be why the run ends
            self.folder.release()
