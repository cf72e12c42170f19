"""The losses of unlearning: one value on the forget group's tokens, another on all others, and their weighted sum."""

import math
from abc import abstractmethod
from collections.abc import Callable, Iterator
from typing import ClassVar, cast

import torch
from torch import nn
from torch.nn import functional as F

from gradroute.data.text.packing import IGNORED
from gradroute.models.logits import Divided, at_once, each_position, source
from gradroute.training.measures import at_least_float32
from gradroute.training.objectives import Batch, Objective, Part, Term, Terms, in_parts

OTHERS = "others"
Values = tuple[torch.Tensor, torch.Tensor]  # at every position, `(batch, length)`: for the forget group, for the others


class ForgetRetainObjective(Objective):
    """Two means over the positions with a target: one over the forget group's tokens, one over all others.

    A subclass defines `values` and `metrics`, the names of both.

    Args:
        group, number: name and number of the forget group.
        retain: weight of the mean over the others. forget: weight of the mean over the forget group.

    Attributes: `note`, a line for the run's log; empty if there is nothing to say.
    """

    metrics: ClassVar[tuple[str, str]]
    note = ""

    def __init__(self, group: str, number: int, retain: float, forget: float = 1.0) -> None:
        self.forgotten = Term("model", group, "all", self.metrics[0])
        self.kept = Term("model", OTHERS, "all", self.metrics[1])
        super().__init__({self.forgotten: forget, self.kept: retain})
        self.number = number

    @abstractmethod
    def values(self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> Values:
        """Return both values at every position, for rows of tokens, all `(batch, length)`."""

    def _chosen(self, targets: torch.Tensor, group_index: torch.Tensor) -> list[torch.Tensor]:
        """Return masks of the positions with a target: in the forget group, and in the others."""
        counted, own = targets != IGNORED, group_index == self.number
        return [counted & own, counted & ~own]

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield parts of a batch, each with the batch's `counts`; see `forward`."""
        counts = torch.stack([chosen.sum() for chosen in self._chosen(batch[1], batch[3])])
        for part in in_parts(batch, number):
            yield (*part, counts)

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, group_index: torch.Tensor,
        membership: torch.Tensor, counts: torch.Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Return the terms for rows of tokens, all `(batch, length)`.

        `counts` `(2,)`: positions with a target in the batch that the rows are a part of: forget group, and others.
        """
        values = self.values(tokens, targets, documents)
        chosen = self._chosen(targets, group_index)
        counts = torch.stack([own.sum() for own in chosen]) if counts is None else counts
        found: Terms = {}
        for i, term in enumerate((self.forgotten, self.kept)):
            value = torch.where(chosen[i], values[i], 0).sum() / counts[i].clamp(min=1)
            found[term] = (value, self.weights[term])
        return found


class LogitsObjective(ForgetRetainObjective):
    """A loss of the next token's distribution; if rows are long, their logits are computed in pieces.

    A subclass defines `each`.

    Args:
        model: the model that unlearns.
        length: tokens in a row.
    """

    def __init__(
        self, model: nn.Module, group: str, number: int, retain: float, forget: float = 1.0, length: int = 0
    ) -> None:
        super().__init__(group, number, retain, forget)
        self.model, self.at_once = model, at_once(model, length)

    def called(self) -> Callable[..., torch.Tensor]:
        """Return the model; if a row's logits are computed in pieces, its part before the output layer."""
        return source(self.model, self.at_once)

    @abstractmethod
    def each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return both values at some positions, `(positions, 2)`, from logits `(positions, vocabulary)` in float32."""

    def targets_of(self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Return what `each` needs of every position, `(batch, length, …)`; here the target."""
        return targets

    def values(self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> Values:
        """Return both values at every position, in nats."""

        def value(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.each(at_least_float32(logits), targets)

        needed = self.targets_of(tokens, targets, documents)
        found = each_position(self.model, self.output(tokens, documents), needed, value, self.at_once)
        forget, retain = found.view(*targets.shape, 2).unbind(-1)
        return forget, retain


def cross_entropies(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the cross-entropy at every position, `(positions,)`; 0 where there is no target."""
    return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")


class EntropyObjective(LogitsObjective):
    """Forget: the KL divergence of the next token's distribution from the uniform one. Retain: the cross-entropy.

    The divergence is the logarithm of the vocabulary minus the entropy, so minimising it maximises the entropy.
    """

    metrics = ("uniform_divergence", "cross_entropy")

    def each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the divergence and the cross-entropy."""
        log_shares = logits.log_softmax(-1)
        entropy = -(log_shares.exp() * log_shares).sum(-1)
        return torch.stack([math.log(logits.shape[-1]) - entropy, cross_entropies(logits, targets)], -1)


class DifferenceObjective(LogitsObjective):
    """Forget: minus the cross-entropy, of each token at most that of a uniform guess. Retain: the cross-entropy.

    Without the bound the loss could fall for ever. A token whose cross-entropy has reached the logarithm of the
    vocabulary has no gradient any more. The bound is for each token, so that parts of a batch add up to the batch.
    """

    metrics = ("bounded_cross_entropy", "cross_entropy")

    def __init__(self, model: nn.Module, group: str, number: int, retain: float, length: int = 0) -> None:
        super().__init__(model, group, number, retain, -1.0, length)

    def each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the bounded cross-entropy and the cross-entropy."""
        found = cross_entropies(logits, targets)
        return torch.stack([found.clamp(max=math.log(logits.shape[-1])), found], -1)


class DistillationObjective(LogitsObjective):
    """Forget and retain: the KL divergence of the student's next-token distribution from the teacher's.

    Args: `teacher`: a model of the student's kind that does not change.
    """

    metrics = ("distillation", "distillation")

    def __init__(
        self, model: nn.Module, teacher: nn.Module, group: str, number: int, retain: float, length: int = 0
    ) -> None:
        super().__init__(model, group, number, retain, length=length)
        self._teacher = (teacher,)  # in a tuple: its parameters are not this module's

    @torch.no_grad()
    def targets_of(self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor) -> torch.Tensor:
        """Return the teacher's output at every position: logits, or features if logits are computed in pieces."""
        return source(self._teacher[0], self.at_once)(tokens, documents)

    def each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the divergence, twice."""
        with torch.no_grad():
            taught = targets if self.at_once is None else cast(Divided, self._teacher[0]).logits(targets)
            teacher = at_least_float32(taught).log_softmax(-1)
        found = F.kl_div(logits.log_softmax(-1), teacher, reduction="none", log_target=True).sum(-1)
        return torch.stack([found, found], -1)
