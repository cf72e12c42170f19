"""The loss of a policy: REINFORCE with a baseline, entropy, and what the gate is to say (GR App. F)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from gradroute.routing.router import Router
from gradroute.training.measures import at_least_float32
from gradroute.training.objectives import UNLABELLED, Batch, Objective, Part, Term, Terms, counted_parts

GATE = "gate"  # the region whose units say which expert acts
RETURN, SEEN_RETURN, SEEN = (Term("episodes", "all", "all", name) for name in ("return", "seen_return", "seen"))


@dataclass(frozen=True)
class Coefficients:
    """Weights of the terms beside the policy's own: the value's squared error, the entropy, and the gate's loss."""

    value: float = 0.5
    entropy: float = 0.1
    gate: float = 0.01


class PolicyObjective(Objective):
    """The loss of a policy over the steps of a batch; a group's steps weigh their share of the batch.

    Args:
        model: maps observations `(n, *shape)` to logits `(n, actions)` and values `(n,)`.
        groups: names of the groups. partial: whether some steps are in no group.
        scales: weight of each group's losses, 1 where not named.
        gate: what the sigmoid of the region `gate` is to be on a group's steps, by group. This loss is not routed.
    """

    router: Router

    def __init__(
        self, model: nn.Module, groups: Sequence[str], router: Router, coefficients: Coefficients,
        scales: Mapping[str, float], gate: Mapping[str, float], partial: bool = False,
    ) -> None:  # fmt: skip
        self.names, self.scales = [*groups, UNLABELLED] if partial else list(groups), scales
        found: dict[Term, float] = {}
        for name in self.names:
            scale = scales.get(name, 1.0)
            found[Term("policy", name, "all", "policy_gradient")] = scale
            found[Term("policy", name, "all", "entropy")] = -coefficients.entropy * scale
            found[Term("value", name, "all", "value_error")] = coefficients.value * scale
        self.gate = Term("gate", "all", GATE, "gate_cross_entropy") if gate else None
        if self.gate:
            found[self.gate] = coefficients.gate
        super().__init__(found | dict.fromkeys((RETURN, SEEN_RETURN, SEEN), 0.0), router)
        self.model = model
        wanted = torch.tensor([gate.get(name, -1.0) for name in self.names])
        self.register_buffer("wanted", wanted.clamp(min=0), persistent=False)
        self.register_buffer("told", (wanted >= 0).float(), persistent=False)
        self.wanted: torch.Tensor
        self.told: torch.Tensor

    def _counts(self, membership: torch.Tensor) -> torch.Tensor:
        """Return the number of steps in each group, `(groups,)`."""
        number = membership.flatten() % len(self.names)
        ones = torch.ones_like(number, dtype=torch.get_default_dtype())
        return ones.new_zeros(len(self.names)).index_add(0, number, ones)

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield parts of a batch, each with the batch's steps per group, `(groups,)`, and its share of the worlds."""
        yield from counted_parts(batch, number, lambda: self._counts(batch[-1]))

    def forward(
        self, observations: torch.Tensor, actions: torch.Tensor, gained: torch.Tensor, true: torch.Tensor,
        seen: torch.Tensor, membership: torch.Tensor, counts: torch.Tensor | None = None, share: float = 1.0,
    ) -> Terms:  # fmt: skip
        """Return the terms for observations `(worlds, steps, *shape)`; all else is `(worlds, steps)`.

        Args:
            gained: the returns that are trained on. true: the environment's own returns, which are only reported.
            seen: whether a labeller sees how the step's episode ends.
            membership: the steps' group numbers. counts, share: see `parts`.
        """
        flat, number = observations.flatten(0, 1), membership.flatten()
        with self.router.route(number, self.monitor) as activations:
            logits, values = self.output(flat)
        log = at_least_float32(logits).log_softmax(-1)
        error = gained.flatten().to(log.dtype) - at_least_float32(values)
        each = {
            "policy_gradient": -log.gather(-1, actions.flatten()[:, None]).squeeze(-1) * error.detach(),
            "entropy": -(log.exp() * log).sum(-1),
            "value_error": error.square(),
        }
        index, counts = number % len(self.names), self._counts(membership) if counts is None else counts
        counts = counts.to(log.dtype)
        shares = counts / counts.sum()
        terms: Terms = {}
        for metric, per_step in each.items():
            means = per_step.new_zeros(len(self.names)).index_add(0, index, per_step) / counts.clamp(min=1)
            for place, name in enumerate(self.names):
                term = Term("value" if metric == "value_error" else "policy", name, "all", metric)
                terms[term] = (means[place], shares[place] * self.weights[term])
        if self.gate:
            shown = at_least_float32(self.router.regions[GATE].select(activations))
            terms[self.gate] = (self._gate_loss(shown, index, counts), self.weights[self.gate])
        return terms | self._reported(true, seen, share)

    def _gate_loss(self, logits: torch.Tensor, index: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """Return the gate's mean cross-entropy over the steps of groups that say what it is to be."""
        wanted = self.wanted[index][:, None].expand_as(logits).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(-1)
        told = self.told.to(logits.dtype)
        return (each * told[index]).sum() / (counts * told).sum().clamp(min=1)

    def _reported(self, true: torch.Tensor, seen: torch.Tensor, share: float) -> Terms:
        """Return what the batch came to: means over steps, with weight 0."""
        values = (true.mean(), (true * seen).mean(), seen.to(true.dtype).mean())
        return {term: (value * share, self.weights[term])
                for term, value in zip((RETURN, SEEN_RETURN, SEEN), values, strict=True)}  # fmt: skip
