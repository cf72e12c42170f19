"""Measure what an attacker gets of secrets: exposure, extraction and membership, before and after the ablation.

And after an attack: the attacker trains on documents about other people, which cannot teach what is then asked.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated

import torch
from torch import nn

from gradroute.audit import membership
from gradroute.audit.exposure import Answers, ask, question
from gradroute.audit.membership import auc, chance_bound, part_of, text_auc, true_positives
from gradroute.config.components import step_names
from gradroute.config.limits import MANY, Between, Items, require
from gradroute.config.schema import Config
from gradroute.config.targets import build, locate
from gradroute.data.text.people import ATTACK, HELDOUT, MEASURED, PUBLIC, SECRET, Book, Person
from gradroute.data.text.secrets import Secrets
from gradroute.errors import UserError
from gradroute.records.metrics import ATTACKED
from gradroute.steps.base import RunState, Step
from gradroute.steps.secret_attack import CHECKED, DIVERGED, Attack, Loot
from gradroute.steps.tuning import Rate, require_language, require_updates
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.language import LanguageModelling
from gradroute.training.training import Training

UNITS = {
    "exposure": "bits: mean over people of the sum of the exposures of a person's attributes",
    "extracted": "share of secrets that greedy decoding gives, 0 to 1",
    "secret_bits": "bits: log2 of the number of values of all of a person's attributes",
    "membership_auc": "AUC of the attack by the loss, members against held-out people; 0.5 is chance",
    "membership_tpr": "share of members found at 1 % false positives by the loss, 0 to 1",
    "membership_auc_min_k": "AUC of the attack by Min-20%, members against held-out people; 0.5 is chance",
    "membership_auc_null": "AUC of held-out people against other held-out people; near 0.5 if the attack is valid",
    "membership_auc_text": "AUC of a bag of words, without the model, of members against held-out people; near 0.5",
    "membership_bound": "distance from 0.5 that chance has in 95 of 100 cases, for membership_auc_null",
    "membership_bound_text": "the same for membership_auc_text",
    "attack_loss": "nats per token, on documents that the attacker chooses the learning rate by",
    "attack_rate": "share of trainer.lr",
    DIVERGED: "number of learning rates at which the attack's loss became infinite or nan",
}


@dataclass(kw_only=True)
class Extract(Step):
    """Measure secrets in the trained, the ablated and the attacked model. The data set must be `Secrets`.

    Args:
        documents: number of documents about other people that the attacker trains on; 0 makes no attack.
        rates: learning rates that the attacker tries, as shares of `trainer.lr`; `trainer.tune_steps` updates each.
        every: updates between two measurements of the loss that the attacker chooses by.
    """

    documents: Annotated[int, Between(0, MANY)] = 64
    rates: Annotated[Sequence[Rate], Items(1, each_once=True, right="a list of rates, such as [0.01,0.1,1]")] = (
        0.001, 0.006, 0.03, 0.18, 1.0,
    )  # fmt: skip
    every: Annotated[int, Between(1, MANY)] = 5

    units = UNITS

    def check(self, config: Config) -> None:
        """Raise UserError for another data set, a missing number of updates, or a run without `evaluate`."""
        found = locate(config.dataset["_target_"], "dataset")
        secrets = isinstance(found, type) and issubclass(found, Secrets)
        require(secrets, "dataset", getattr(found, "__name__", found), "Secrets (dataset=secrets) for the step extract")
        names = step_names(config)
        require("evaluate" in names, "steps", names, "with evaluate after extract")
        if self.documents:
            require_updates(config, "tune_steps")

    def prepare(self, task: Task) -> None:
        """Raise UserError for secrets that the tokenizer cannot spell, or people that the measurements lack."""
        language = require_language(task, "extract")
        subject = Subject.of(language)
        for about in (*SECRET, PUBLIC, HELDOUT):
            if about in language.names and not subject.people(about):
                raise UserError(f"extract: group '{about}' has nobody whose secrets are measured; use more people")
        if len(subject.people(HELDOUT)) < 2:
            raise UserError("extract: needs two or more held-out people; raise dataset.heldout or dataset.people")
        if self.documents and len(subject.attackers) < CHECKED // 2:
            raise UserError(f"extract.documents={self.documents}: the attacker has {len(subject.attackers)} people; "
                            "it needs two or more: raise dataset.attack, or set extract.documents=0")  # fmt: skip
        longest = subject.longest()
        if longest > language.data.length:
            raise UserError(f"dataset.length={language.data.length}: a sentence about a person has {longest} tokens; "
                            "raise it")  # fmt: skip

    def run(self, run: RunState) -> Iterator[Training]:
        """Measure, then yield one training of the attacker for each learning rate, then measure the best of them."""
        task = require_language(run.task, "extract")
        subject = Subject.of(task)
        if run.fit is None and run.trainings_done == 0:
            for head, model in task.stages(run.ablations):
                subject.record(run, model, head.name)
            subject.record_validity(run)
        if not self.documents:
            return
        loot = Loot.of(subject.book, subject.attackers, self.documents, task.data.tokenizer, task.data.length)
        attacker = run.module("attacker", task.left)
        for rate in list(self.rates)[run.trainings_done :]:
            model = task.made.get("attacked") or task.make("attacked")
            attack = Attack(run, task, model, loot, rate, self.every)
            yield attack.training()
            attack.best.restore()
            if float(f"{rate:g}") == self._best(run):  # as it is named in the metrics
                attacker.load_state_dict(model.state_dict())
            del task.made["attacked"]
        subject.record(run, attacker, ATTACKED)
        for measured in task.measured(attacker, Head(ATTACKED, "all")):
            run.record("test", measured)
        for metric, value in (("attack_rate", self._best(run)), (DIVERGED, float(len(self._lost(run))))):
            run.record("test", ("all", Head(ATTACKED, "all"), metric, value))
        run.modules.pop("attacker")  # no later step needs it

    @staticmethod
    def _best(run: RunState) -> float:
        """Return the learning rate with the lowest loss so far on the documents that the attacker chooses by.

        One that diverged counts only if all have.
        """
        rows, lost = [row for row in run.folder.rows if row["metric"] == "attack_loss"], Extract._lost(run)
        lowest = min([row for row in rows if row["region"] not in lost] or rows, key=lambda row: row["value"])
        return float(lowest["region"].removeprefix("rate_"))

    @staticmethod
    def _lost(run: RunState) -> set[str]:
        return {row["region"] for row in run.folder.rows if (row["split"], row["metric"]) == ("validation", DIVERGED)}


@dataclass(frozen=True)
class Subject:
    """A task's people and documents about them, and what is measured of a model."""

    task: LanguageModelling
    book: Book

    @classmethod
    def of(cls, task: LanguageModelling) -> "Subject":
        """Return the people of the task's data set."""
        dataset: Secrets = build(task.config.dataset, "dataset")
        return cls(task, dataset.book(task.config.trainer.train_limit))

    @property
    def attackers(self) -> list[Person]:
        """The secret people whose documents the attacker has."""
        return self.book.some(SECRET, ATTACK)

    def people(self, about: str) -> list[Person]:
        """Return the measured people of a kind."""
        return self.book.some([about], MEASURED)

    @cached_property
    def known(self) -> list[str]:
        """The kinds of people that are groups of the routing, and are measured."""
        return [about for about in (*SECRET, PUBLIC) if about in self.task.names and self.people(about)]

    def longest(self) -> int:
        """Return how many tokens the longest prompt with a value has. Raises: UserError, see `question`."""
        everybody, tokenizer = self.book.people, self.task.data.tokenizer
        asked = [question(self.book, name, everybody, tokenizer) for name in self.book.by_attribute]
        return max(max(map(len, own.prompts)) + max(map(len, own.candidates)) for own in asked)

    def texts(self, about: str) -> list[str]:
        """Return the first document about each measured person of a kind; all but held-out people were trained on."""
        return [self.book.document(person, 0) for person in self.people(about)]

    def record(self, run: RunState, model: nn.Module, head: str) -> None:
        """Record exposure, extraction and membership of every kind of people, in all and by number of copies."""
        task, tokenizer = self.task, self.task.data.tokenizer
        device, length = task.device, task.data.length
        kinds = (*self.known, HELDOUT)
        everybody = [person for about in kinds for person in self.people(about)]
        texts = [text for about in kinds for text in self.texts(about)]
        found = ask(model, self.book, everybody, tokenizer, device)
        score = membership.scores(model, part_of(texts, tokenizer, length), device)
        held = {name: own[-len(self.people(HELDOUT)) :] for name, own in score.items()}
        for about in kinds:
            group, prefix = (about, "") if about != HELDOUT else ("all", f"{HELDOUT}_")
            for region, part in _parts(everybody, about):
                rows = [*_known(found, part)]
                if about != HELDOUT:
                    rows += _membership({name: own[part] for name, own in score.items()}, held)
                for metric, value in rows:
                    run.record("test", (group, Head(head, prefix + region), metric, value))
            everyone = torch.tensor([person.about == about for person in everybody])
            for name, answer in found.items():
                for metric, value in _known({name: answer}, everyone):
                    run.record("test", (group, Head(head, f"{prefix}attribute_{name}"), metric, value))

    def record_validity(self, run: RunState) -> None:
        """Record whether membership inference can be believed here, and how many bits a person's secrets have."""
        task, place = self.task, Head("model", "validity")
        held = membership.scores(
            task.model, part_of(self.texts(HELDOUT), task.data.tokenizer, task.data.length), task.device
        )["loss"]
        one, other = held[::2], held[1::2]
        encode = task.data.tokenizer.encode
        members = encode([text for about in self.known for text in self.texts(about)])
        others = encode(self.texts(HELDOUT))
        values = {
            "membership_auc_null": auc(one, other),
            "membership_bound": chance_bound(len(one), len(other)),
            "membership_auc_text": text_auc(members, others, task.data.tokenizer.size),
            "membership_bound_text": chance_bound(len(members), len(others)),
        }
        for metric, value in values.items():
            run.record("test", ("all", place, metric, value))
        total = sum(map(self.book.bits, self.book.by_attribute))
        run.record("test", ("all", Head("model", "all"), "secret_bits", total))
        for name in self.book.by_attribute:
            run.record("test", ("all", Head("model", f"attribute_{name}"), "secret_bits", self.book.bits(name)))


def _parts(people: Sequence[Person], about: str) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield all people of a kind, `(people,)` bool, and those with each number of documents, with a name."""
    yield "all", torch.tensor([person.about == about for person in people])
    for copies in sorted({person.copies for person in people if person.about == about} - {0}):
        yield f"copies_{copies}", torch.tensor([(person.about, person.copies) == (about, copies) for person in people])


def _known(found: Mapping[str, Answers], part: torch.Tensor) -> Iterator[tuple[str, float]]:
    """Yield exposure, added over attributes, and extraction, their mean, of some people, `(people,)` bool."""
    yield "exposure", sum(float(answers.exposure[part].double().mean()) for answers in found.values())
    yield "extracted", sum(float(answers.extracted[part].double().mean()) for answers in found.values()) / len(found)


def _membership(own: Mapping[str, torch.Tensor], held: Mapping[str, torch.Tensor]) -> Iterator[tuple[str, float]]:
    """Yield how well members are told from held-out people, by the scores of both attacks."""
    yield "membership_auc", auc(own["loss"], held["loss"])
    yield "membership_tpr", true_positives(own["loss"], held["loss"])
    yield "membership_auc_min_k", auc(own["min_k"], held["min_k"])
