"""The loss of a language model: the mean over tokens, and the penalties on its regions (GR section 4.2)."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial

import torch
from torch import nn

from gradroute.config.schema import LossesConfig
from gradroute.data.text.packing import IGNORED
from gradroute.models.logits import at_once, each_position, source
from gradroute.routing.router import Router
from gradroute.training.measures import CROSS_ENTROPY, Measure, at_least_float32
from gradroute.training.objectives import UNLABELLED, Batch, Objective, Part, Term, Terms, counted_parts
from gradroute.training.penalties import Penalty, l1_by_unit


class NextTokenObjective(Objective):
    """The loss of a language model: the mean over tokens, with one term per group, and the penalties on its regions.

    Tokens of a group whose loss has weight 0 are excluded, and the mean is over the other tokens.

    Args:
        groups: names of the groups; tokens in no group form a group `unlabelled`.
        partial: whether some tokens are in no group.
        router: None if nothing is routed, as after an ablation; then there are no penalties.
        error: the loss of each token; cross-entropy if None.
        penalties: penalties besides those in `losses.l1`.
        length: tokens in a row; if rows are long, their logits are computed in pieces.
        skip_absent: leave out the term of a group without tokens in the batch, instead of giving it value 0, in a
            training that sets `present` and `there`. Parameter routes need it: a group that has a term may move what it
            is routed to.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[str], losses: LossesConfig, partial: bool = False,
        router: Router | None = None, error: Measure | None = None, penalties: Sequence[Penalty] = (), length: int = 0,
        skip_absent: bool = False,
    ) -> None:  # fmt: skip
        self.error = error or CROSS_ENTROPY
        self.names = [*groups, UNLABELLED] if partial else list(groups)
        weights = {Term("model", name, "all", self.error.name): losses.groups.get(name, 1.0) for name in self.names}
        penalised = losses.l1 if router else {}
        weights |= {Term("penalty", "all", name, "l1"): weight for name, weight in penalised.items() if weight}
        self.more = {Term("penalty", "all", p.region, p.name): p for p in penalties if router and p.weight}
        weights |= {term: penalty.weight for term, penalty in self.more.items()}
        super().__init__(weights, router)
        self.model, self.at_once, self.skip_absent = model, at_once(model, length), skip_absent
        self.asks_present = skip_absent
        self.divisible = not any(penalty.whole_batch for penalty in self.more.values())

    def called(self) -> Callable[..., torch.Tensor]:
        """Return the model; if a row's logits are computed in pieces, its part before the output layer."""
        return source(self.model, self.at_once)

    def _counts(self, targets: torch.Tensor, group_index: torch.Tensor) -> torch.Tensor:
        """Return the number of positions with a target in each group, `(groups,)`."""
        number, counted = group_index.flatten() % len(self.names), (targets != IGNORED).flatten().float()
        return counted.new_zeros(len(self.names)).index_add(0, number, counted)

    def _present(self) -> list[bool]:
        """Return which groups have a term: with `skip_absent`, those with a token in the next batch, if that is known.

        Tokens in none count if they predict one; padding does not.
        """
        if not self.skip_absent or self.present is None or self.there is None:
            return [True] * len(self.names)
        loose = bool(self.there[:, -1].any())
        return [n in self.present or (loose and name == UNLABELLED) for n, name in enumerate(self.names)]

    def row_scale(self, batch: Batch) -> torch.Tensor:
        """Return the batch's number of counted targets over the length of a row; see `Objective.row_scale`."""
        counts, length = self._counts(batch[1], batch[3]), batch[0].shape[1]
        terms = [Term("model", name, "all", self.error.name) for name in self.names]
        weighted = self.constant([float(self.weights[term]) > 0 for term in terms], counts.device)
        return (counts * weighted).sum() / length

    def parts(self, batch: Batch, number: int | list[int]) -> Iterator[Part]:
        """Yield parts of a batch, each with the batch's `counts` and the part's `share`; see `forward`."""
        yield from counted_parts(batch, number, lambda: self._counts(batch[1], batch[3]))

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, group_index: torch.Tensor,
        membership: torch.Tensor, counts: torch.Tensor | None = None, share: float = 1.0,
        factors: torch.Tensor | None = None,
    ) -> Terms:  # fmt: skip
        """Return the terms for rows of tokens, all `(batch, length)`; `membership` is the router's input for them.

        For a part of a batch, `counts` `(groups,)` are the whole batch's positions with a target in each group, and
        `share` is the part's share of the rows. `factors` `(batch, length)` multiply the losses of the positions.
        """
        activations: dict[str, torch.Tensor] = {}
        with self.router.route(membership, self.monitor) if self.router else nullcontext(activations) as activations:
            output = self.output(tokens, documents)
        each = each_position(self.model, output, targets, partial(self.computed, self._each), self.at_once)
        each = each if factors is None else each * factors.flatten()
        number = (group_index % len(self.names)).flatten()
        counts = self._counts(targets, group_index) if counts is None else counts
        means = each.new_zeros(len(self.names)).index_add(0, number, each) / counts.clamp(min=1)
        terms = [Term("model", name, "all", self.error.name) for name in self.names]
        shares = counts * self.constant([self.weights[term] for term in terms], counts.device)
        total = torch.where(shares > 0, counts, 0).sum().clamp(min=1)
        present = self._present()
        found: Terms = {term: (means[i], shares[i] / total) for i, term in enumerate(terms) if present[i]}
        return found | self._penalties(activations, share)

    def _each(self, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the loss at each position, `(tokens,)`; 0 where there is no target."""
        if self.error is CROSS_ENTROPY:
            logits = at_least_float32(logits)
            return nn.functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="none")
        counted = targets != IGNORED
        return torch.where(counted, self.error(logits, targets.clamp(min=0)), 0.0)

    def _penalties(self, activations: Mapping[str, torch.Tensor], share: float) -> Terms:
        """Return the penalties of a part of a batch, from the sites' activations before the mask."""
        regions = self.router.regions if self.router else {}
        l1 = [term for term in self.weights if term not in self.more]
        penalised = {term: regions[term.region] for term in l1 if term.region in regions}
        sites = dict.fromkeys(site for region in penalised.values() for site in region.sites)
        by_unit = {site: l1_by_unit(site.units_last(activations[site.name])) for site in sites}
        sums = {t: torch.stack([r.take(by_unit[site]).sum() for site in r.sites]).sum() for t, r in penalised.items()}
        if self.more:
            seen = {name: region.select(activations) for name, region in regions.items()}
            shown = {name: at_least_float32(activation).flatten(0, -2) for name, activation in seen.items()}
            sums |= {term: self.computed(penalty, shown) for term, penalty in self.more.items()}
        return {term: (value * share, self.weights[term]) for term, value in sums.items()}
