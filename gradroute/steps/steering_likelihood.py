"""Measure what adding to one dimension does to the likelihood of words (after GR section 4.2.1).

Dimensions and models are compared at the same mean Kullback-Leibler divergence (KL) of the next token, unsteered from
steered, in nats per token.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import nn

from gradroute.config.limits import WEIGHT
from gradroute.data.text.corpora import Part, some
from gradroute.data.text.packing import IGNORED
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.models.logits import LOGITS
from gradroute.routing.sites import undisturbed
from gradroute.steps.word_directions import KINDS, Words, whole_words
from gradroute.tasks.language_losses import token_values
from gradroute.training.measures import CROSS_ENTROPY

KL_POSITIONS = 4096  # positions over which the KL is a mean, at most
AT_ONCE = 2**23  # logits in one forward pass for the KL
EXACT = 2e-3  # relative error of a strength
Steer = Callable[[int, float], AbstractContextManager[None]]  # of a unit and an amount


@dataclass(frozen=True)
class Sample:
    """Documents, and by kind where whole words stand in them: first token and number of tokens, `(words, 2)`."""

    part: Part
    places: Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Effect:
    """A mean log-likelihood ratio in nats, the half-width of its 95 % interval, and over how many words or tokens.

    The interval is over documents, which are independent; words of one document are not.
    """

    mean: float
    half: float
    count: int


def sample(
    part: Part, words: Words, tokenizer: Tokenizer, length: int, positions: int, having: str | None = None
) -> Sample:
    """Return the first documents with at most `positions` tokens in total, or the first one alone.

    having: a kind of word; documents without one are left out, if any has one.
    """
    chosen = torch.ones(len(part.corpus.lengths), dtype=torch.bool)
    if having is not None:
        there = whole_words(part.corpus, words.sequences(having), tokenizer.spellings)[:, 0]
        chosen[:] = not len(there)
        chosen[part.corpus.documents[there]] = True
    numbers = torch.nonzero(chosen).flatten()
    fitting = int((part.corpus.lengths[numbers].cumsum(0) <= positions).sum())
    own = some(part, numbers[: max(1, fitting)].tolist(), length)
    return Sample(own, {kind: whole_words(own.corpus, words.sequences(kind), tokenizer.spellings) for kind in KINDS})


def clustered(values: torch.Tensor, documents: torch.Tensor) -> Effect:
    """Return the mean of values `(n,)`, with an interval over their documents `(n,)`; nan without values."""
    from scipy.special import stdtrit

    count, values = len(values), values.double()
    if not count:
        return Effect(math.nan, math.nan, 0)
    mean = values.mean()
    _, own = documents.unique(return_inverse=True)
    sums = torch.zeros(int(own.max()) + 1, dtype=torch.float64).index_add_(0, own, values - mean)
    free = len(sums) - 1
    if not free:
        return Effect(float(mean), math.nan, count)
    error = math.sqrt(float(sums.square().sum()) * (free + 1) / free) / count
    return Effect(float(mean), float(stdtrit(free, 0.975)) * error, count)


def effects(sample: Sample, ratio: torch.Tensor) -> dict[str, Effect]:
    """Return the effect on each kind of word, and on all `other` tokens.

    ratio: log-likelihood ratio of the token after each position, `(total,)`. That of a word is the sum over its tokens.
    """
    corpus = sample.part.corpus
    own = torch.zeros_like(ratio, dtype=torch.float64)
    own[1:] = ratio[:-1]
    others = torch.ones(len(own), dtype=torch.bool)
    others[corpus.starts] = False  # nothing predicts a document's first token
    sums, found = torch.cat([own.new_zeros(1), own.cumsum(0)]), dict[str, Effect]()
    for kind, places in sample.places.items():
        first, size = places.unbind(1)
        found[kind] = clustered(sums[first + size] - sums[first], corpus.documents[first])
        for offset in range(int(size.max()) if len(size) else 0):
            others[first[size > offset] + offset] = False
    return found | {"other": clustered(own[others], corpus.documents[others])}


class Likelihoods:
    """Likelihoods of a model, plain and steered.

    Args:
        model: the language model; its mode and weights do not change.
        steer: returns a context in which an amount is added to a unit.
        whole: documents, of which the first positions give the KL.
        test, train: documents in which to measure words, and documents to choose a direction by.
        tokens: tokens that are whole words, by kind.
    """

    def __init__(
        self, model: nn.Module, steer: Steer, whole: Part, test: Sample, train: Sample,
        tokens: Mapping[str, Sequence[int]], device: torch.device,
    ) -> None:  # fmt: skip
        self.model, self.steer, self.test, self.train, self.tokens = model, steer, test, train, tokens
        self.device = device
        self._plain = {id(each): self._values(each) for each in (test, train)}
        self._rows = self._first_rows(whole)
        self._before = [self._log_probabilities(*rows) for rows in self._rows]
        self._seen: dict[tuple[int, float], tuple[float, dict[str, float]]] = {}  # by unit and amount

    def _values(self, sample: Sample) -> torch.Tensor:
        return token_values(self.model, sample.part, [CROSS_ENTROPY], self.device)[CROSS_ENTROPY.name]

    def ratio(self, sample: Sample, unit: int, amount: float) -> torch.Tensor:
        """Return the log-likelihood ratio, steered to unsteered, of the token after each position, `(total,)`."""
        with self.steer(unit, amount):
            return self._plain[id(sample)] - self._values(sample)

    def _first_rows(self, whole: Part) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Return batches of tokens, documents and positions with a target, up to `KL_POSITIONS` of these."""
        packed, vocabulary = whole.packed, len(self.model.unembedding)  # type: ignore[arg-type]
        chosen = packed.targets != IGNORED
        share = max(KL_POSITIONS // 4, int(chosen.sum()) // 4)  # fewer in a trial on a few documents
        most = max(1, min(KL_POSITIONS, share, LOGITS // vocabulary))
        chosen &= (chosen.flatten().cumsum(0) <= most).view_as(chosen)
        rows = torch.nonzero(chosen.any(1)).flatten()
        size = max(1, AT_ONCE // (vocabulary * packed.tokens.shape[1]))
        return [
            (packed.tokens[own].to(self.device), packed.documents[own].to(self.device), chosen[own].to(self.device))
            for own in rows.split(size)
        ]

    def _log_probabilities(self, tokens: torch.Tensor, documents: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
        with undisturbed(self.model), torch.no_grad():
            logits: torch.Tensor = self.model(tokens, documents)
            return logits[chosen].float().log_softmax(-1)

    def _compared(self, unit: int, amount: float) -> tuple[float, dict[str, float]]:
        """Return the KL, and by kind the ratio of the mean probability of its tokens, over the first positions."""
        if (unit, amount) not in self._seen:
            divergence, now, then = 0.0, dict.fromkeys(self.tokens, 0.0), dict.fromkeys(self.tokens, 0.0)
            with self.steer(unit, amount):
                for rows, before in zip(self._rows, self._before, strict=True):
                    after = self._log_probabilities(*rows)
                    divergence += float((before.exp() * (before - after)).sum(-1).double().sum())
                    for kind, tokens in self.tokens.items():
                        now[kind] += float(after[:, list(tokens)].exp().double().sum())
                        then[kind] += float(before[:, list(tokens)].exp().double().sum())
            times = {kind: now[kind] / then[kind] if then[kind] else math.nan for kind in self.tokens}
            self._seen[unit, amount] = max(0.0, divergence / sum(map(len, self._before))), times
        return self._seen[unit, amount]

    def kl(self, unit: int, amount: float) -> float:
        """Return the mean KL of the next token, unsteered from steered, over the first positions: nats per token."""
        return self._compared(unit, amount)[0]

    def times(self, unit: int, amount: float) -> dict[str, float]:
        """Return by kind how many times as likely its words are at the first positions, whatever stands there.

        It is the ratio, steered to unsteered, of the mean probability of all words that are one token.
        """
        return self._compared(unit, amount)[1]

    def strength(self, unit: int, level: float, start: float = 1.0) -> float | None:
        """Return an amount at which the KL is `level`, of the sign of `start`; None if there is none.

        The amount doubles from `start` until the KL reaches the level, and Brent's method finds the level below it.
        """
        from scipy.optimize import brentq

        high = start
        while not (reached := self.kl(unit, high)) >= level:
            high *= 2
            if abs(high) > WEIGHT or math.isnan(reached):
                return None
        if not math.isfinite(reached):
            return None

        def beyond(amount: float) -> float:
            return math.sqrt(self.kl(unit, amount)) - math.sqrt(level)  # nearly linear in small amounts

        low = 0.0 if high == start else high / 2
        return float(brentq(beyond, low, high, xtol=EXACT * abs(high), rtol=EXACT))

    def effects(self, unit: int, amount: float) -> dict[str, Effect]:
        """Return the effect of an amount on each kind of word in the test documents, and on all other tokens."""
        return effects(self.test, self.ratio(self.test, unit, amount))

    def direction(self, unit: int, amount: float) -> float:
        """Return 1 or -1: the direction in which an amount makes the routed words of the training documents likelier.

        Neither the related words nor the test documents have a say.
        """
        more, less = (effects(self.train, self.ratio(self.train, unit, sign * amount))["routed"] for sign in (1, -1))
        return 1.0 if not less.mean > more.mean else -1.0
