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
from gradroute.tasks.base import Measurement, Probe, Task
from gradroute.training.fit import Training
from gradroute.training.objectives import Term
from gradroute.training.weights import own_tensors

Watch = Callable[[int, list[dict[str, Any]]], None]  # of the updates so far, and what was measured then


class Shows(Protocol):
    """What shows on the terminal and in the log how far a run is."""

    def epoch(self, epoch: int, epochs: int, means: dict[Term, float]) -> None:
        """Show that an epoch ended with these mean losses."""
        ...


class RunState:
    """What a run is, apart from how it is made: its steps read and change it.

    Attributes:
        updates: how many the training has made. done: names of the steps that are done. trainings_done: of the step
        that is next. fit: where its next training was, if the run was resumed in the middle of one.
        ablations: what `ablate` prepared. donor: a finished run whose training is reused.
        watch: called after every evaluation while the model trains.
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
        self.train_began = 0.0  # seconds of the run
        self.done: list[str] = []
        self.trainings_done = 0
        self.fit: Mapping[str, Any] | None = None
        self.modules: dict[str, nn.Module] = {}  # of steps, by name
        self.saved: dict[str, dict[str, torch.Tensor]] = {}  # weights of a checkpoint for modules not made yet

    def record(self, split: str, measured: Measurement, step: int | None = None) -> None:
        """Add a row to the metrics; `step` is how many updates the training has made, if None."""
        group, head, metric, value = measured
        self.folder.add(self.updates if step is None else step, split, group, head.name, head.region, metric, value)

    def evaluate(self) -> None:
        """Measure every head on the test data and write the metrics."""
        for measured in self.task.measure(self.ablations):
            self.record("test", measured)
        self.folder.write_metrics()

    def headline(self) -> list[dict[str, Any]]:
        """The last measurements of groups, without those of single labels."""
        final = final_rows(self.folder.rows)
        return [row for row in final if row["group"] in [*self.task.names, "all"]]

    def training(self, probe: Probe, **options: Any) -> Training:
        """The training of a probe in this run's order of data; a step yields it to have it made."""
        points, trainer = probe.points or self.task.points, probe.trainer or self.config.trainer
        return Training(probe.title, probe.objective, probe.batch, points, trainer, self.order, **options)

    def module(self, name: str, make: Callable[[], nn.Module]) -> nn.Module:
        """A module that a step trains: made once, saved with the run's weights, and read back when it is resumed."""
        if name not in self.modules:
            self.modules[name] = make().to(self.task.device)
            if name in self.saved:
                self.modules[name].load_state_dict(self.saved.pop(name))
        return self.modules[name]

    def tensors(self) -> dict[str, torch.Tensor]:
        """The weights of everything that was trained, by name, on the CPU."""
        own = {f"steps.{name}.{k}": v for name, m in self.modules.items() for k, v in own_tensors(m).items()}
        return self.task.tensors() | {name: tensor.cpu().contiguous() for name, tensor in own.items()}

    def reuse_training(self, donor: Path) -> None:
        """Be as if the run had trained as `donor` did."""
        raise NotImplementedError


class Step(ABC):
    """One thing that a run does. Its constructor's arguments are its configuration; a dataclass has none to write.

    Attributes: `units`, of the metrics that it records, by name.
    """

    units: ClassVar[Mapping[str, str]] = {}

    def check(self, config: Config) -> None:  # noqa: B027  # most steps need no check
        """Raise UserError for settings that do not fit together, before any data are read."""

    def prepare(self, task: Task) -> None:  # noqa: B027
        """Raise UserError for what the step will need and the data or the model lack, before the first step begins."""

    @abstractmethod
    def run(self, run: RunState) -> Iterable[Training]:
        """Do it. A step that trains yields its trainings (`run.training`), each of which is made before it goes on.

        A run that is resumed in the middle of a step calls this again, with `run.trainings_done`.
        """

    def again(self, run: RunState) -> None:  # noqa: B027
        """Restore what a later step needs of this one, in a run that is resumed after it."""
