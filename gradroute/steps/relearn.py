"""Train the model on a few documents of the forget group, to measure how fast it relearns them (GR App. C)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import mean
from typing import Annotated

from gradroute.config.limits import Items
from gradroute.records.metrics import RELEARNED
from gradroute.steps.base import RunState
from gradroute.steps.tuning import Rate, Tuning, TuningStep, require_language
from gradroute.tasks.evaluation import Head
from gradroute.training.training import Training


@dataclass(kw_only=True)
class Relearn(TuningStep):
    """Relearn from each number of documents and each choice of them; report the mean over choices.

    Args:
        rates: learning rates to try instead of `rate`, as shares of `trainer.lr`. As an attacker would, take for each
            choice of documents the rate with the lowest validation loss of the group.
    """

    rates: Annotated[Sequence[Rate], Items(0, each_once=True, right="a list of rates, such as [0.1,0.3,1]")] = ()

    section = "relearn"

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training for each number and choice of documents and each rate, all from the same model."""
        task, rates = require_language(run.task, self.section), tuple(self.rates) or (self.rate,)
        plan = [(documents, sample, rate) for documents in self.documents for sample in range(self.samples)
                for rate in rates]  # fmt: skip
        for documents, sample, rate in plan[run.trainings_done :]:
            model = task.made.get("relearning") or task.make("relearning")
            name = f"{RELEARNED}{documents}"
            region = f"sample_{sample}" + (f"_rate_{rate:g}" if self.rates else "")
            own, start = replace(self, rate=rate), self._start(run)
            tuning = Tuning(run, model, own, documents, sample, name, region, start)
            yield tuning.training()
            tuning.best.restore()
            for measured in task.measured(model, tuning.head):
                run.record("sample", measured, tuning.best.step)
            del task.made["relearning"]
            if (sample, rate) == (self.samples - 1, rates[-1]):
                self._summarise(run, name)

    def _start(self, run: RunState) -> dict[str, float]:
        """Return the validation losses that the first training began with: all begin with the same model."""
        return {
            row["group"]: row["value"]
            for row in run.folder.rows
            if (row["split"], row["step"]) == ("validation", 0) and row["head"].startswith(RELEARNED)
        }

    def _summarise(self, run: RunState, head: str) -> None:
        """Record the mean over choices of documents, each at its best rate; with several rates also which that is."""
        best = [self._best(run, head, f"sample_{sample}") for sample in range(self.samples)]
        found: dict[tuple[str, str], list[float]] = {}
        for row in run.folder.rows:
            if (row["split"], row["head"]) == ("sample", head) and row["region"] in best:
                found.setdefault((row["group"], row["metric"]), []).append(row["value"])
        for (group, metric), values in found.items():
            run.record("test", (group, Head(head, "all"), metric, mean(values)))
        if self.rates:
            chosen = mean(float(region.rpartition("_")[2]) for region in best)
            run.record("test", (self.group, Head(head, "all"), "best_rate", chosen))

    def _best(self, run: RunState, head: str, sample: str) -> str:
        """Return the training of a choice of documents with the lowest validation loss, by its region's name."""
        lowest: dict[str, float] = {}
        for row in run.folder.rows:
            own = row["region"] == sample or row["region"].startswith(f"{sample}_rate_")
            if own and (row["split"], row["head"], row["group"]) == ("validation", head, self.group):
                lowest[row["region"]] = min(row["value"], lowest.get(row["region"], row["value"]))
        return min(lowest, key=lambda region: lowest[region])
