"""What an audit asks a model as it is: after a prompt, about people's secrets, and what its loss is worth."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from gradroute.audit import leakage
from gradroute.audit.compute import LEAST, PowerLaw, curve_of, fitted
from gradroute.audit.exposure import ask
from gradroute.audit.material import FOLDS, FORGET, TEST, Documents, Material
from gradroute.audit.prompting import prompted, prompted_part
from gradroute.config.targets import build
from gradroute.data.text.corpora import Part, some
from gradroute.data.text.people import MEASURED, Book, Person
from gradroute.data.text.secrets import Secrets
from gradroute.training.measures import CROSS_ENTROPY

PROMPTS, EXPOSURE, RATIO = "prompts with examples", "exposure of secrets", "the compute ratio"
LEAKAGE = "leakage in forget tokens"
BITS = "bits: mean over people of the sum of the exposures of a person's attributes"


@dataclass(frozen=True)
class Answer:
    """Values of one axis, one for each repetition; `higher`: whether a higher one shows more knowledge."""

    axis: str
    values: Sequence[float]
    unit: str
    higher: bool


@dataclass
class Questions:
    """The questions that apply to a task, the same for every anchor, and why others do not.

    Attributes:
        prompts: for each choice of examples, the test documents after them. people: whose secrets are asked. baseline:
        the curve by which a loss is worth a number of updates, with the loss at its end. folds: the group's test
        documents, whose losses the curve is asked about. exposed: numbers of forget tokens that plain models saw, with
        their losses. unlabelled: how many the audited model saw without a label. untried: what does not apply, and why.
    """

    prompts: list[Part] = field(default_factory=list)
    people: tuple[Book, Sequence[Person]] | None = None
    baseline: tuple[PowerLaw, float] | None = None
    folds: list[Part] = field(default_factory=list)
    exposed: leakage.Points = ()
    unlabelled: int = 0
    untried: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, material: Material, shots: int, samples: int, baseline: Path | None) -> "Questions":
        """Return what can be asked.

        Args:
            shots: documents in a prompt; 0 asks none. samples: choices of them. baseline: the run of an unrouted
                training.
        """
        if not isinstance(material, Documents):
            return cls(untried=dict.fromkeys((PROMPTS, EXPOSURE, RATIO), "for language models only"))
        found, task = cls(), material.task
        parts = [prompted_part(material, shots, sample) for sample in range(max(2, samples))] if shots else []
        found.prompts = [part for part in parts if part is not None]
        if len(found.prompts) < len(parts) or not parts:
            found.prompts = []
            found.untried[PROMPTS] = "a row has no room for two documents" if parts else "audit.shots=0"
        dataset = build(task.config.dataset, "dataset")
        book = dataset.book(task.config.trainer.train_limit) if isinstance(dataset, Secrets) else None
        people = book.some([material.group], MEASURED) if book is not None else []
        if book is not None and len(people) >= FOLDS:
            found.people = book, people
        else:
            found.untried[EXPOSURE] = f"the data has no {FOLDS} people in the group whose secrets are known"
        points = curve_of(baseline, material.group, CROSS_ENTROPY.name) if baseline is not None else []
        law = fitted(points)
        if law is None:
            fault = f"the never-routed run was measured at {len(points)} updates; a falling curve of {LEAST} is needed"
            found.untried[RATIO] = fault
            return found
        own = torch.nonzero(task.test_groups == task.names.index(material.group)).flatten()
        found.baseline = law, points[-1][1]
        found.folds = [some(task.data.test, fold.tolist(), task.data.length) for fold in own.tensor_split(FOLDS)]
        return found

    def answers(self, material: Material, model: nn.Module) -> Iterator[Answer]:
        """Yield a model's values of every axis."""
        if not isinstance(material, Documents):
            return
        if self.prompts:
            losses = [prompted(material, model, part) for part in self.prompts]
            yield Answer("few_shot", losses, f"{material.loss_name}, {material.unit}", higher=False)
        if self.exposed:
            each = leakage.worth(material.each(model, FORGET, TEST), self.exposed)
            seen = f"the audited model saw {self.unlabelled} without a label"
            unit = f"forget tokens that a plain model must see, at most {self.exposed[-1][0]}; {seen}"
            yield Answer("leakage", each, unit, higher=True)
        if self.people is not None:
            book, people = self.people
            found = ask(model, book, people, material.task.data.tokenizer, material.task.device)
            bits = torch.stack([answers.exposure for answers in found.values()]).sum(0)
            yield Answer("exposure", [float(fold.mean()) for fold in bits.tensor_split(FOLDS)], BITS, higher=True)
        if self.baseline is not None:
            law, last = self.baseline
            worth = [law.updates(material.mean(model, fold)) / law.updates(last) for fold in self.folds]
            yield Answer("compute_ratio", worth, "updates of an unrouted training, as a share of all", higher=True)
