"""Make parts of a finished run's training again, and compare its ledger, losses and weights with those in its folder.

The ledger, the metrics and the weights of a folder could come from different trainings, with checksums made to fit. A
window of updates that is made again from the seed, or from a checkpoint that the run kept (`checkpoint.replay`), shows
that the configuration leads to these rows and to these weights.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gradroute.config.components import step_names, steps_of
from gradroute.config.schema import Config
from gradroute.records.checkpoints import Checkpoint
from gradroute.records.run_folder import Unwritten
from gradroute.running.resume import restore
from gradroute.steps.base import RunState
from gradroute.steps.pretrain import Pretrain
from gradroute.steps.train import privacy_spent, training_of
from gradroute.tasks.base import create
from gradroute.training.fit import Fit
from gradroute.training.ledger import Ledger

Rows = list[dict[str, Any]]


class _Silent:
    def epoch(self, epoch: int, epochs: int, means: Mapping[Any, float]) -> None:
        """Show nothing."""


class _Enough(Exception):
    """Raised after the last update that is to be made again."""


class Replay(RunState):
    """The state of a run whose training is made again; nothing is written, and nothing is evaluated.

    data: `Task.data` of another replay of the run, to reuse instead of reading the data set.
    """

    def __init__(self, run: Path, manifest: Mapping[str, Any], config: Config, data: Any = None) -> None:
        super().__init__()
        self.config, self.task = config, create(config, data, run)
        for step in steps_of(config):
            step.prepare(self.task)
        self.folder, self.progress = Unwritten(run, manifest), _Silent()
        self.folder.units |= self.task.units()
        self.donor = self.watch = None
        self.order.manual_seed(config.seed)
        self.window = config.ledger.window

    def evaluate(self) -> None:
        """Do nothing: the metrics are checked by themselves."""

    def train(self, checkpoint: Checkpoint | None, stop: int | None) -> Rows:
        """Train from a checkpoint, or from the seed, to `stop` updates or to the end; return the ledger's new rows."""
        task, settings = self.task, self.config.ledger
        if checkpoint is not None:
            steps = dict(zip(step_names(self.config), steps_of(self.config), strict=True))
            restore(self, steps, checkpoint)
            self.folder.rows = []
        else:
            self._pretrain()
        ledger = Ledger(task.router, task.parts.parameter_router, task.routed, settings.window, settings.every)
        fit = Fit([training_of(self, ledger, privacy_spent(self))], self.config.trainer.precision, task.device)
        fit.exact = bool(self.folder.manifest.get("exact", True))
        if self.fit is not None:
            fit.load_states([self.fit])
        begun = fit.step

        def after_update() -> None:
            if fit.step == stop:
                raise _Enough

        with suppress(_Enough):
            fit.run(after_update)
        ledger.close(fit.step)
        self.link()
        return [row for row in ledger.rows if row["from_step"] >= begun]

    def _pretrain(self) -> None:
        """Make the step `pretrain` again, if the run has one."""
        for step in steps_of(self.config):
            for training in step.trainings(self) if isinstance(step, Pretrain) else ():
                Fit([training], self.config.trainer.precision, self.task.device).run()


@dataclass(frozen=True)
class Segment:
    """Updates to make again: from a kept checkpoint, or from the seed if `start` is 0, to `stop`."""

    start: int
    stop: int


def segments(windows: Sequence[tuple[int, int]], kept: Iterable[int], count: int | None) -> list[Segment]:
    """Return what to make again for the first window and `count` others, drawn at random; for all if None.

    Windows that begin from the same checkpoint are made in one go.

    Args:
        windows: first update, and the one after the last, of every window.
        kept: updates before which the run kept a checkpoint.
    """
    if count is None:
        return [Segment(0, windows[-1][1])]
    drawn = random.SystemRandom().sample(windows[1:], min(count, len(windows) - 1))
    starts, found = sorted({0, *kept}), dict[int, int]()
    for first, end in [windows[0], *drawn]:
        start = max(start for start in starts if start <= first)
        found[start] = max(found.get(start, 0), end)
    return [Segment(start, stop) for start, stop in sorted(found.items())]
