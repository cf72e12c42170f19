"""Prepare the configured ablations, which `evaluate` applies."""

from collections.abc import Iterable
from dataclasses import dataclass

from gradroute.steps.base import RunState, Step
from gradroute.training.training import Training


@dataclass
class Ablate(Step):
    """Ablate one region, several together, or each in turn, as `ablation.region` says."""

    def run(self, run: RunState) -> Iterable[Training]:
        """Prepare the ablations; the model does not change."""
        self.again(run)
        return ()

    def again(self, run: RunState) -> None:
        """Prepare the ablations again in a resumed run."""
        run.ablations = run.task.ablations()
