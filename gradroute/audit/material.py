"""The data of an audit: what attackers train on, what they choose by, and what is reported; never the same points.

An attack trains on training points of the group, chooses its learning rate on validation points, and is reported on
test points. Where a data set has no validation points, every second test point of a group serves as one.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from gradroute.audit.units import Biased
from gradroute.config.schema import LossesConfig
from gradroute.data.text.corpora import Part, some
from gradroute.data.text.packing import IGNORED
from gradroute.errors import UserError
from gradroute.models.logits import at_once
from gradroute.routing.sites import undisturbed
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import CHUNK, chunk_size
from gradroute.tasks.images import ImageTask
from gradroute.tasks.language import LanguageModelling
from gradroute.tasks.language_losses import token_values
from gradroute.tasks.language_objective import NextTokenObjective
from gradroute.training.gradients import total
from gradroute.training.measures import CROSS_ENTROPY

Batch = tuple[torch.Tensor, ...]
FORGET, RETAIN = "forget", "retain"
VALIDATION, TEST = "validation", "test"
FOLDS = 5  # parts of the test points, whose losses are repetitions where nothing is trained


def halves(numbers: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return every second point for validation, and the others for the test."""
    return {VALIDATION: numbers[0::2], TEST: numbers[1::2]}


class Material(ABC):
    """Points to attack with, and points to measure on. A subclass knows one kind of task.

    Args:
        group: whose knowledge is audited; all other points are retained.
        points: number of points of each kind that are measured, at most.
        seed: of the choices of points.

    Attributes: `loss_name`, `unit`: of the losses. `own`, `others`: numbers of training points, of the group
        and of the rest. measured: numbers of points to measure on, by kind and part.
    """

    loss_name: str
    unit: str
    own: torch.Tensor
    others: torch.Tensor
    measured: dict[tuple[str, str], torch.Tensor]

    def __init__(self, group: str, points: int, seed: int) -> None:
        self.group, self.points, self.seed = group, points, seed

    def chosen(self, kind: str, count: int, sample: int) -> list[int]:
        """Return numbers of training points of a kind, of which there are enough: a random choice, by its number."""
        numbers = self.own if kind == FORGET else self.others
        generator = torch.Generator().manual_seed(self.seed * 1000 + sample)
        order = torch.randperm(len(numbers), generator=generator)
        return [int(numbers[place]) for place in order[:count]]

    @abstractmethod
    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return training points as the arguments of `loss`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean loss on a batch, which can be differentiated."""

    @abstractmethod
    def each(self, model: nn.Module, kind: str, part: str) -> list[float]:
        """Return the mean loss on each fold of the points of a kind and part."""

    @abstractmethod
    def outputs(self, model: nn.Module, kind: str) -> torch.Tensor | None:
        """Return log-probabilities on test points of a kind, `(n, outcomes)`; None if the model gives none."""

    @abstractmethod
    def biased(self, model: nn.Module) -> "Biased":
        """Return the model with a trainable bias, of zeros, on its outputs."""

    @abstractmethod
    def measure(self, model: nn.Module, kind: str, part: str) -> float:
        """Return the mean loss on the points of a kind and part."""

    def require(self, count: int, key: str) -> None:
        """Raise UserError for fewer training points than an attack needs, or too few points to measure on."""
        if count > len(self.own):
            raise UserError(f"{key}={count}: group '{self.group}' has {len(self.own)} points to train on; use fewer")
        if short := [kind for kind, numbers in self.measured.items() if len(numbers) < FOLDS]:
            kind, part = short[0]
            what = f"{len(self.measured[short[0]])} {kind} points for the {part}"
            raise UserError(f"audit.group={self.group}: there are {what}; at least {FOLDS} are needed")


class Documents(Material):
    """Documents of a language model; losses are nats per token."""

    loss_name, unit = "cross_entropy", "nats per token"

    def __init__(self, task: LanguageModelling, group: str, points: int, seed: int) -> None:
        super().__init__(group, points, seed)
        self.task, number = task, task.names.index(group)
        own = task.train_groups == number
        self.own, self.others = torch.nonzero(own).flatten(), torch.nonzero(~own).flatten()
        self.measured, sources = {}, {TEST: task.data.test, VALIDATION: task.data.test}
        for kind in (FORGET, RETAIN):
            tested = torch.nonzero((task.test_groups == number) == (kind == FORGET)).flatten()
            parts = halves(tested)
            if task.validation.held_out:
                sources[VALIDATION] = task.validation.part
                held = (task.validation.groups == number) == (kind == FORGET)
                parts = {TEST: tested, VALIDATION: torch.nonzero(held).flatten()}
            self.measured |= {(kind, part): numbers[:points] for part, numbers in parts.items()}
        self.parts: dict[tuple[str, str], list[Part]] = {
            key: [some(sources[key[1]], fold.tolist(), task.data.length) for fold in numbers.tensor_split(FOLDS)]
            for key, numbers in self.measured.items()
            if len(numbers) >= FOLDS
        }
        self.whole = {
            key: some(sources[key[1]], numbers.tolist(), task.data.length)
            for key, numbers in self.measured.items()
            if len(numbers)
        }

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return tokens, targets and documents of packed rows, `(rows, length)` each."""
        packed = some(self.task.data.train, numbers, self.task.data.length).packed
        return tuple(tensor.to(self.task.device) for tensor in (packed.tokens, packed.targets, packed.documents))

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the mean cross-entropy of the batch's tokens."""
        if isinstance(model, Biased):
            logits = model(batch[0], batch[2]).float().flatten(0, 1)
            return F.cross_entropy(logits, batch[1].flatten(), ignore_index=IGNORED)
        objective = NextTokenObjective(model, ["audit"], LossesConfig(), length=self.task.data.length)
        nothing = torch.zeros_like(batch[0])
        return total(objective(*batch, nothing, nothing))

    def each(self, model: nn.Module, kind: str, part: str) -> list[float]:
        """Return the mean cross-entropy of the tokens of each fold."""
        return [self.mean(model, fold) for fold in self.parts[kind, part]]

    def measure(self, model: nn.Module, kind: str, part: str) -> float:
        """Return the mean cross-entropy of all tokens of the documents."""
        return self.mean(model, self.whole[kind, part])

    def mean(self, model: nn.Module, part: Part) -> float:
        """Return the mean cross-entropy of all tokens of a part but the first of each document."""
        values = token_values(model, part, [CROSS_ENTROPY], self.task.device)[CROSS_ENTROPY.name]
        predicting = len(part.corpus.tokens) - len(part.corpus.lengths)  # a document's first token is not predicted
        return float(values.double().sum()) / predicting

    def biased(self, model: nn.Module) -> Biased:
        """Return the model with a bias on its logits, of the vocabulary's size."""
        return Biased(model, self.task.data.tokenizer.size).to(self.task.device)

    def outputs(self, model: nn.Module, kind: str) -> torch.Tensor | None:
        """Return log-probabilities at the predicting positions of the first test fold, `(tokens, vocabulary)`.

        None if a row has too many logits to hold them all.
        """
        if at_once(self.task.model, self.task.data.length) is not None:
            return None
        packed = self.parts[kind, TEST][0].packed
        rows = [t.to(self.task.device) for t in (packed.tokens, packed.documents)]
        with undisturbed(model), torch.no_grad():
            logits = model(*rows).float()
        found: torch.Tensor = logits[(packed.targets != IGNORED).to(logits.device)].log_softmax(-1)
        return found


class Pictures(Material):
    """Images of an autoencoder or a classifier; the loss is the error that the task minimises."""

    def __init__(self, task: ImageTask, group: str, points: int, seed: int) -> None:
        super().__init__(group, points, seed)
        self.task, number = task, task.names.index(group)
        self.loss_name, self.unit = task.error.name, task.error.unit
        own = task.train_groups == number
        self.own, self.others = torch.nonzero(own).flatten().cpu(), torch.nonzero(~own).flatten().cpu()
        self.measured = {}
        for kind in (FORGET, RETAIN):
            tested = torch.nonzero((task.test_groups == number) == (kind == FORGET)).flatten()
            self.measured |= {(kind, part): numbers[:points] for part, numbers in halves(tested).items()}

    def batch(self, numbers: Sequence[int]) -> Batch:
        """Return images in the model's shape, and their targets."""
        rows = torch.tensor(numbers, device=self.task.device)
        return self.task.train_images[rows], self.task.targets(train=True)[rows]

    def tested(self, kind: str, part: str) -> Batch:
        """Return the images to measure on, and their targets."""
        rows = self.measured[kind, part]
        return self.task.test_images[rows], self.task.targets(train=False)[rows]

    def loss(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Return the task's mean error on a batch."""
        return self.task.error(model(batch[0]).float().flatten(1), batch[1]).mean()

    def predicted(self, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return a module's outputs for images or activations, `(n, outputs)`, without gradients."""
        with undisturbed(model), torch.no_grad():
            return torch.cat([model(chunk).float().flatten(1) for chunk in images.split(chunk_size(images))])

    def each(self, model: nn.Module, kind: str, part: str) -> list[float]:
        """Return the mean error of each fold."""
        images, targets = self.tested(kind, part)
        return self.folds(self.predicted(model, images), targets)

    def measure(self, model: nn.Module, kind: str, part: str) -> float:
        """Return the mean error of the images."""
        found = self.each(model, kind, part)
        return sum(found) / len(found)

    def folds(self, outputs: torch.Tensor, targets: torch.Tensor) -> list[float]:
        """Return the mean error of each fold of outputs."""
        with torch.no_grad():
            pairs = zip(outputs.split(CHUNK), targets.split(CHUNK), strict=True)
            errors = torch.cat([self.task.error(*pair) for pair in pairs])
        return [float(fold.double().mean()) for fold in errors.tensor_split(FOLDS)]

    def biased(self, model: nn.Module) -> Biased:
        """Return the model with a bias on its outputs."""
        return Biased(model, self.task.outputs).to(self.task.device)

    def outputs(self, model: nn.Module, kind: str) -> torch.Tensor | None:
        """Return a classifier's log-probabilities of the test images, `(images, classes)`; None of an autoencoder."""
        images, _ = self.tested(kind, TEST)
        return self.predicted(model, images).log_softmax(-1) if self.task.classifies else None


def material_of(task: Task, group: str, points: int, seed: int) -> Material:
    """Return the material of a task. Raises: UserError for a task that has none, or a model that takes groups."""
    if isinstance(task, LanguageModelling):
        return Documents(task, group, points, seed)
    if isinstance(task, ImageTask):
        if task.takes_groups:
            raise UserError("steps: audit needs a model with one decoder; set model.decoders=1")
        return Pictures(task, group, points, seed)
    raise UserError(f"steps: audit is for images and language models, not for task={task.kind}")
