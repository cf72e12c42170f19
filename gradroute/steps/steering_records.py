"""What the step `steer` measures along dimensions of the residual stream, and records of it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.data.text.tokenizing import Tokenizer
from gradroute.steps.base import RunState
from gradroute.steps.steering_likelihood import Effect, Likelihoods
from gradroute.steps.word_directions import KINDS, cosines, nearest
from gradroute.tasks.evaluation import Head

SHOWN = 40  # tokens kept of those nearest to the dimension
MEASURED = (*KINDS, "other")
UNITS = {
    "kl": "nats per token: mean KL of the next token, unsteered from steered",
    "strength": "amount added to the residual stream, towards the routed words",
    **{f"{kind}_llr": f"nats per word: mean log-likelihood ratio of {kind} words, steered to unsteered"
       for kind in KINDS},
    **{f"{kind}_times": f"times as likely: mean probability of {kind} words at any position, steered by unsteered"
       for kind in KINDS},
    "other_llr": "nats per token: mean log-likelihood ratio of all other tokens, steered to unsteered",
}  # fmt: skip


@dataclass(frozen=True)
class Dimension:
    """What was measured along one dimension, by label of the strength: `+5`, or `kl_0.1`.

    Attributes:
        sign: 1 or -1, the direction of the routed words, which has positive strengths.
        unreached: KLs that no amount has.
    """

    unit: int
    sign: float
    strengths: Mapping[str, float]
    kl: Mapping[str, float]
    times: Mapping[str, Mapping[str, float]]
    effects: Mapping[str, Mapping[str, Effect]]
    unreached: Sequence[float]

    @classmethod
    def measured(
        cls, measure: Likelihoods, unit: int, strengths: Sequence[float], levels: Sequence[float]
    ) -> "Dimension":
        """Measure a dimension at given strengths, and at those whose KL is one of the levels."""
        size = max(map(abs, strengths), default=0.0) or (measure.strength(unit, min(levels)) if levels else None)
        sign, start = measure.direction(unit, size or 1.0), size or 1.0
        found, unreached = {f"{strength:+g}": float(strength) for strength in strengths}, list[float]()
        for level in sorted(levels):
            amount = measure.strength(unit, level, sign * start)
            if amount is None:
                unreached.append(level)
            else:
                found[f"kl_{level:g}"] = start = abs(amount)
        kl, times, effects = dict[str, float](), dict[str, dict[str, float]](), dict[str, dict[str, Effect]]()
        for label, strength in found.items():
            amount = sign * strength
            kl[label], times[label] = measure.kl(unit, amount), measure.times(unit, amount)
            effects[label] = measure.effects(unit, amount)
        return cls(unit, sign, found, kl, times, effects, unreached)

    def as_rows(self) -> dict[str, Any]:
        """Return plain data: by label, strength, KL, times, and for each kind of word mean, half-width and count."""
        measured = {
            label: {
                "strength": round(strength, 4),
                "kl": round(self.kl[label], 6),
                "times": {kind: _finite(times) for kind, times in self.times[label].items()},
                **{kind: _plain(effect) for kind, effect in self.effects[label].items()},
            }
            for label, strength in self.strengths.items()
        }
        return {"unit": self.unit, "sign": self.sign, "measured": measured}


def _plain(effect: Effect) -> list[float | int | None]:
    return [_finite(effect.mean), _finite(effect.half), effect.count]


def _finite(number: float) -> float | None:
    return round(number, 6) if math.isfinite(number) else None


def record_dimensions(run: RunState, group: str, found: Sequence[Dimension]) -> None:
    """Record what was measured along the first dimension, and the means over the others, the placebos."""
    own, *placebos = found
    for head, dimensions in (("steered", [own]), ("steered_placebo", placebos)):
        for label in own.strengths:
            there = [each for each in dimensions if label in each.strengths]
            values = {"strength": [each.strengths[label] for each in there], "kl": [each.kl[label] for each in there]}
            values |= {f"{kind}_llr": [each.effects[label][kind].mean for each in there] for kind in MEASURED}
            values |= {f"{kind}_times": [each.times[label][kind] for each in there] for kind in KINDS}
            for metric, each in values.items():
                if each and all(map(math.isfinite, each)):
                    run.record("test", (group, Head(head, label), metric, sum(each) / len(each)))


def nearest_rows(matrix: torch.Tensor, unit: int, tokenizer: Tokenizer, kinds: Mapping[int, str]) -> list[list[Any]]:
    """Return the tokens nearest to a dimension, nearest first: spelling, cosine, and kind of word, if any."""
    own = cosines(matrix, unit)
    tokens = nearest(matrix, unit, SHOWN, (tokenizer.end, tokenizer.unknown)).tolist()
    return [[tokenizer.spellings[token], round(float(own[token]), 4), kinds.get(token, "")] for token in tokens]
