"""Fine-tune the ablated model on a few documents (GR App. C)."""

from collections.abc import Iterator
from dataclasses import dataclass

from gradroute.steps.base import RunState
from gradroute.steps.tuning import Tuning, TuningStep, require_language
from gradroute.training.training import Training


@dataclass(kw_only=True)
class FineTune(TuningStep):
    """Fine-tune the model; the weights with the lowest validation loss become the model `finetuned`."""

    section = "finetune"

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training, on the first of the numbers of documents."""
        task = require_language(run.task, self.section)
        model = task.made.get("finetuned") or task.make("finetuned")
        tuning = Tuning(run, model, self, self.documents[0], 0, "model_finetuned")
        yield tuning.training()
        tuning.best.restore()
