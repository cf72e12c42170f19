"""The attacker of the step `extract`: train on documents about some people, so that others' secrets come back.

The documents say nothing of the people whose secrets are measured, so that they cannot teach what is then found.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import nn

from gradroute.audit.membership import part_of
from gradroute.data.text.corpora import Part
from gradroute.data.text.people import Book, Person
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.records.metrics import ATTACKED
from gradroute.steps.base import RunState
from gradroute.steps.tuning import Best, plain_probe
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_losses import group_means, token_values
from gradroute.training.measures import CROSS_ENTROPY
from gradroute.training.training import Training

DIVERGED = "attack_diverged"  # metric
CHECKED = 4  # of the attacker's people, every fourth is not trained on: by those the attacker chooses


@dataclass(frozen=True)
class Loot:
    """What the attacker has: documents to train on, and documents about other people to choose by."""

    train: Part
    check: Part

    @classmethod
    def of(cls, book: Book, people: Sequence[Person], documents: int, tokenizer: Tokenizer, length: int) -> "Loot":
        """Return documents about an attacker's people; a person has several, in different wordings, if need be."""
        checked = people[::CHECKED]
        trained = [person for place, person in enumerate(people) if place % CHECKED]
        texts = [book.document(trained[n % len(trained)], n // len(trained)) for n in range(documents)]
        held = [book.document(person, number) for person in checked for number in range(2)]
        return cls(part_of(texts, tokenizer, length), part_of(held, tokenizer, length))


class Attack:
    """One training of the attacked model at one learning rate; `best` has the weights that the attacker keeps."""

    def __init__(self, run: RunState, task: LanguageModelling, model: nn.Module, loot: Loot, rate: float, every: int):
        self.run, self.task, self.model, self.loot, self.rate, self.every = run, task, model, loot, rate, every
        self.place = Head(ATTACKED, f"rate_{rate:g}")
        self.best, self.steps = Best(model), run.config.trainer.tune_steps or 0

    def loss(self) -> float:
        """Return the loss on the documents that the attacker chooses by, in nats per token."""
        each = token_values(self.model, self.loot.check, [CROSS_ENTROPY], self.task.device)[CROSS_ENTROPY.name]
        groups = self.loot.check.corpus.lengths * 0
        return group_means(each, self.loot.check, groups, ["check"])["check"]

    def see(self, step: int) -> None:
        """Measure and record the loss if it is due, and keep the best weights."""
        if step % self.every and step != self.steps:
            return
        loss = self.loss()
        if math.isfinite(loss):  # else the update has broken the model, as the next one will find
            self.run.record("validation", ("all", self.place, "attack_loss", loss), step)
            self.best.see(step, loss)

    def lost(self, error: FloatingPointError) -> None:
        """Record that this rate is too high: the attacker does not choose it while another is left."""
        self.run.record("validation", ("all", self.place, DIVERGED, 1.0), 0)
        self.run.folder.log(f"attack at {self.rate:g}: diverged ({error})")

    def training(self) -> Training:
        """Return the training, with all documents in every batch, after measuring its start if it is new."""
        task = self.task
        trainer = replace(
            task.config.trainer, epochs=self.steps, batch_size=len(self.loot.train.packed),
            lr=task.config.trainer.lr * self.rate, schedule="constant", warmup_steps=0, end_rate=0.0, accumulate=1,
        )  # fmt: skip
        probe = plain_probe(f"attack at {self.rate:g}", self.model, task, "attack", self.loot.train, trainer)
        if self.run.fit is None:
            self.see(0)
        return self.run.training(
            probe, on_epoch=lambda epoch, step, means: self.see(epoch), watcher=self.best, diverged=self.lost
        )
