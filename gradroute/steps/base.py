"""The contract of a step, and the state of the run that steps work on."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from gradroute.config.schema import Config
from gradroute.records.metrics import final_rows
from gradroute.records.run_folder import RunFolder
from gradroute.routing.ablation import Ablation
from gradroute.tasks.base import Task
from gradroute.tasks.probe import Measurement, Probe
from gradroute.training.memory import collect_copies
from gradroute.training.objectives import Term
from gradroute.training.training import Training
from gradroute.training.weights import digest, own_tensors

Watch = Callable[[int, list[dict[str, Any]]], None]  # called with the number of updates and the latest measurements


class Shows(Protocol):
    """A display of a run's progress on the terminal and in the log."""

    def epoch(self, epoch: int, epochs: int, means: dict[Term, float]) -> None:
        """Show that an epoch ended with these mean losses."""
        ...


class RunState:
    """The state of a run, which its steps read and change.

    Attributes:
        updates: number of updates that the training has made.
        done: names of the completed steps.
        trainings_done: number of completed trainings of the current step.
        fit: state of the current training, if the run was resumed in the middle of one.
        ablations: the ablations that `ablate` prepared.
        donor: finished run whose training is reused.
        watch: called after every evaluation while the model trains.
        links: digests of the weights before each window of the ledger, and after the training.
        window: updates in a window, while the step `train` trains and its weights are noted; else 0.
    """

    config: Config
    task: Task
    folder: RunFolder
    progress: Shows
    donor: Path | None
    watch: Watch | None

    def __init__(self) -> None:
        self.order = torch.Generator()
        self.ablations: list[Ablation] = []
        self.updates = 0
        self.train_began = 0.0  # in seconds since the run began
        self.done: list[str] = []
        self.trainings_done = 0
        self.fit: Mapping[str, Any] | None = None
        self.modules: dict[str, nn.Module] = {}  # modules that steps train, by name
        self.saved: dict[str, dict[str, torch.Tensor]] = {}  # weights of a checkpoint for modules not made yet
        self.links: list[str] = []
        self.window = 0

    def record(self, split: str, measured: Measurement, step: int | None = None) -> None:
        """Add a row to the metrics; if None, `step` is the number of updates that the training has made."""
        group, head, metric, value = measured
        self.folder.add(self.updates if step is None else step, split, group, head.name, head.region, metric, value)

    def evaluate(self) -> None:
        """Measure every head on the test data and write the metrics."""
        for measured in self.task.measure(self.ablations):
            self.record("test", measured)
        self.folder.write_metrics()

    def headline(self) -> list[dict[str, Any]]:
        """Return the last measurements of groups, without those of single labels."""
        final = final_rows(self.folder.rows)
        return [row for row in final if row["group"] in [*self.task.names, "all"]]

    def training(self, probe: Probe, **options: Any) -> Training:
        """Return the training of a probe in this run's data order; a step yields it, and the run executes it."""
        points, given = probe.points or self.task.points, probe.trainer or self.config.trainer
        trainer = self.task.fitted(given, points)
        collect_copies(probe.objective)
        if trainer.accumulate != given.accumulate:
            self.folder.log(f"{probe.title}: takes each batch in {trainer.accumulate} parts, for its memory")
        return Training(probe.title, probe.objective, probe.batch, points, trainer, self.order, **options)

    def module(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """Return a module that a step trains: made once, saved with the run's weights, restored when resumed."""
        if name not in self.modules:
            self.modules[name] = make().to(self.task.device)
            if name in self.saved:
                self.modules[name].load_state_dict(self.saved.pop(name))
        return self.modules[name]

    def tensors(self) -> dict[str, torch.Tensor]:
        """Return all trained weights by name, on the CPU."""
        own = {f"steps.{name}.{k}": v for name, m in self.modules.items() for k, v in own_tensors(m).items()}
        return self.task.tensors() | {name: tensor.cpu().contiguous() for name, tensor in own.items()}

    def link(self) -> None:
        """Note the digest of the weights as they are now."""
        self.links.append(digest(self.tensors()))

    def keeps(self, update: int, updates: int) -> bool:
        """Return whether the checkpoint after `update` of `updates` updates is kept: at the start of some windows.

        The last window is among them, so that what it makes again are the run's final weights.
        """
        wanted = self.config.checkpoint.replay if self.window else 0
        windows = -(-updates // self.window) if wanted else 0
        starts = {round(i * (windows - 1) / wanted) * self.window for i in range(1, wanted + 1)}
        return update in starts - {0}

    def reuse_training(self, donor: Path) -> None:
        """Take over the training of the run `donor` instead of training."""
        raise NotImplementedError

    def anchor(self, config: Config, make: bool) -> Path:
        """Return a finished run of this training, made if needed and `make`. Raises: UserError if there is none."""
        raise NotImplementedError


class Step(ABC):
    """A step of a run. The constructor's arguments are the keys of its configuration, so a dataclass suffices.

    Attributes: `units`: units of the metrics that the step records, by metric; `only_measures`: whether it measures the
    models of runs that go on together, and changes none of them.
    """

    units: ClassVar[Mapping[str, str]] = {}
    only_measures: ClassVar[bool] = False

    def check(self, config: Config) -> None:  # noqa: B027  # most steps need no check
        """Raise UserError for settings that do not fit together, before any data are read."""

    def prepare(self, task: Task) -> None:  # noqa: B027
        """Raise UserError if the data or the model lack what the step needs, before the first step begins."""

    def measured(self, task: Task) -> Iterable[Measurement]:
        """Return the measurements that follow from the final weights alone, which `gradroute-verify` makes again."""
        return ()

    @abstractmethod
    def run(self, run: RunState) -> Iterable[Training]:
        """Execute the step. To train, yield trainings (`run.training`); each is complete when the generator continues.

        A run that is resumed in the middle of a step calls this again; skip the first `run.trainings_done` trainings.
        """

    def apart(self, run: RunState) -> Callable[[], object] | None:
        """Return the step's work as a call that another process can make; None if it needs the run itself.

        The call must be picklable, and leave everything in the run's folder. Runs that go on together then make the
        step in several processes.
        """
        return None

    def again(self, run: RunState) -> None:  # noqa: B027
        """Restore what later steps need of this one, in a run that is resumed after it."""
