"""Train the model on a few documents of the forget group, to measure how fast it relearns them (GR App. C)."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import mean

from gradroute.records.metrics import RELEARNED
from gradroute.steps.base import RunState
from gradroute.steps.tuning import Tuning, TuningStep, require_language
from gradroute.tasks.evaluation import Head
from gradroute.training.fit import Training


@dataclass(kw_only=True)
class Relearn(TuningStep):
    """Relearn from each number of documents and each choice of them; report the mean over choices."""

    section = "relearn"

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training for each number and choice of documents; each starts from the previous steps' model."""
        task = require_language(run.task, self.section)
        plan = [(documents, sample) for documents in self.documents for sample in range(self.samples)]
        for documents, sample in plan[run.trainings_done :]:
            model = task.made.get("relearning") or task.make("relearning")
            name = f"{RELEARNED}{documents}"
            tuning = Tuning(run, model, self, documents, sample, name)
            yield tuning.training()
            tuning.best.restore()
            for measured in task.measured(model, tuning.head):
                run.record("sample", measured, tuning.best.step)
            del task.made["relearning"], model, tuning
            if sample == self.samples - 1:
                for (group, metric), values in _samples(run, name).items():
                    run.record("test", (group, Head(name, "all"), metric, mean(values)))


def _samples(run: RunState, head: str) -> dict[tuple[str, str], list[float]]:
    """Return the measurements of a relearning with each choice of documents, by group and metric."""
    found: dict[tuple[str, str], list[float]] = {}
    for row in run.folder.rows:
        if (row["split"], row["head"]) == ("sample", head):
            found.setdefault((row["group"], row["metric"]), []).append(row["value"])
    return found
