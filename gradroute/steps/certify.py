"""Train fresh certificates on the frozen model: one that lagged behind the model could pass for a clean split."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from gradroute.steps.base import RunState, Step
from gradroute.training.training import Training


@dataclass
class Certify(Step):
    """Train a fresh certificate for each certified region."""

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training per certified region."""
        epochs = run.config.trainer.epochs
        for probe in islice(run.task.probes(), run.trainings_done, None):
            yield run.training(probe, on_epoch=lambda epoch, step, means: run.progress.epoch(epoch, epochs, means))
