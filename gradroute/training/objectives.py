"""The loss terms of GR App. B, each with a name, so that every one can be recorded and claimed about."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from gradroute.config.schema import LossesConfig
from gradroute.data.text.packing import IGNORED
from gradroute.routing import Monitor, Router
from gradroute.routing.monitor import Watched
from gradroute.routing.router import Tables


@dataclass(frozen=True)
class Term:
    """One measurement's identity: which head, on which group, for which region, by which function."""

    head: str
    group: str
    region: str
    metric: str


Terms = dict[Term, tuple[torch.Tensor, float | torch.Tensor]]  # value and weight of each
Batch = tuple[torch.Tensor, ...]
Part = tuple[Any, ...]  # rows of a batch, and what it takes for the parts' terms to add up to the batch's
UNLABELLED = "unlabelled"
CORRELATION = Term("penalty", "all", "all", "correlation")


def at_least_float32(values: torch.Tensor) -> torch.Tensor:
    """`values` in float32 if they came in less, such as from autocast; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def group_means(
    values: torch.Tensor, group_index: torch.Tensor, groups: int, counts: torch.Tensor | None = None
) -> torch.Tensor:
    """Mean of `values` `(batch,)` within each group, `(groups,)`; an empty group contributes 0.

    Of a part of a batch, `counts` `(groups,)` are those of the whole.
    """
    zeros = values.new_zeros(groups)
    sums = zeros.index_add(0, group_index, values)
    counts = zeros.index_add(0, group_index, torch.ones_like(values)) if counts is None else counts
    return sums / counts.clamp(min=1)


def l1_penalty(activation: torch.Tensor) -> torch.Tensor:
    """Mean over images of the L1 norm of `(batch, units)`."""
    return activation.abs().sum(-1).mean()


def l1_by_unit(activation: torch.Tensor) -> torch.Tensor:
    """Each unit's mean |activation|, `(units,)`, of `(batch, …, units)`: their sum is the L1 penalty.

    Regions are taken from that: slices of the activations would each get a gradient of the whole's size.
    """
    return at_least_float32(activation).flatten(0, -2).abs().mean(0)


def correlation_penalty(activations: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean |correlation| over all pairs of units in different regions; each region `(batch, units)`.

    Units are standardised with the unbiased standard deviation and the products divided by the batch size, as
    published; a constant unit, or a batch of one image, contributes 0.
    """
    if len(activations) < 2 or len(activations[0]) < 2:
        return activations[0].new_zeros(()) if activations else torch.zeros(())
    batch = activations[0].shape[0]
    z = [(a - a.mean(0)) / a.std(0).clamp(min=1e-8) for a in activations]
    blocks = [(a.T @ b / batch).abs() for a, b in combinations(z, 2)]
    total = torch.stack([block.sum() for block in blocks]).sum()
    return total / sum(block.numel() for block in blocks)


class Objective(nn.Module):
    """What is trained: called with a batch it returns `Terms`, whose weighted sum is the loss.

    Attributes: `weights`, of every term it can give (in a stack, tensors of one replica); `router`, the routes on its
    model; `monitor`, if the next batch is to be measured; `program`, its compiled model.
    """

    model: nn.Module

    def __init__(self, weights: Mapping[Term, float], router: Router | None = None) -> None:
        super().__init__()
        self.weights: Mapping[Term, float | torch.Tensor] = dict(weights)
        self.router = router
        self.monitor: Monitor | Watched | None = None
        self.program: Callable[..., torch.Tensor] | None = None

    def output(self, *inputs: torch.Tensor) -> torch.Tensor:
        """The model's output, compiled where it is and nothing is measured: a monitor would break the program."""
        program = None if self.monitor else self.program
        output: torch.Tensor = (program or self.model)(*inputs)
        return output

    @contextmanager
    def set_to(self, weights: Mapping[Term, torch.Tensor], tables: Tables, monitor: Watched | None) -> Iterator[None]:
        """Have other weights, masks and monitor inside: those of one replica of a stack."""
        kept, self.weights, self.monitor = (self.weights, self.monitor), weights, monitor
        try:
            with self.router.using(tables) if self.router else nullcontext():
                yield
        finally:
            self.weights, self.monitor = kept

    def parts(self, batch: Batch, number: int) -> Iterator[Part]:
        """A batch in `number` parts, or fewer if it has fewer rows: the values of their terms add up to the batch's.

        Here it is one whole: most losses are not sums over data points.
        """
        yield batch


def in_parts(batch: Batch, number: int) -> Iterator[Batch]:
    """The rows of a batch in parts as equal as can be, none empty."""
    yield from zip(*(rows.tensor_split(min(number, len(batch[0]))) for rows in batch), strict=True)


class NextTokenObjective(Objective):
    """The loss of a language model: the mean over tokens, a term for each group's, and the penalties of its regions.

    Tokens of a group whose loss has weight 0 do not count: what is left is that of the other tokens alone.

    Args:
        groups: the groups' names; tokens in none are a group `unlabelled`.
        partial: some tokens are in none.
        router: None where nothing is routed, as after an ablation; there are no penalties then.
    """

    def __init__(
        self, model: nn.Module, groups: Sequence[str], losses: LossesConfig, partial: bool = False,
        router: Router | None = None,
    ) -> None:  # fmt: skip
        self.names = [*groups, UNLABELLED] if partial else list(groups)
        weights = {Term("model", name, "all", "cross_entropy"): losses.groups.get(name, 1.0) for name in self.names}
        penalised = losses.l1 if router else {}
        weights |= {Term("penalty", "all", name, "l1"): weight for name, weight in penalised.items() if weight}
        super().__init__(weights, router)
        self.model = model

    def _counts(self, targets: torch.Tensor, group_index: torch.Tensor) -> torch.Tensor:
        """Tokens that predict one, of each group, `(groups,)`."""
        number, counted = group_index.flatten() % len(self.names), (targets != IGNORED).flatten().float()
        return counted.new_zeros(len(self.names)).index_add(0, number, counted)

    def parts(self, batch: Batch, number: int) -> Iterator[Part]:
        """Rows, with the whole batch's tokens of each group, and the part's share of the rows: see `forward`."""
        if number == 1:
            yield batch
            return
        counts = self._counts(batch[1], batch[3])
        for part in in_parts(batch, number):
            yield (*part, counts, len(part[0]) / len(batch[0]))

    def forward(
        self, tokens: torch.Tensor, targets: torch.Tensor, documents: torch.Tensor, group_index: torch.Tensor,
        membership: torch.Tensor, counts: torch.Tensor | None = None, share: float = 1.0,
    ) -> Terms:  # fmt: skip
        """Terms for rows of tokens, all `(batch, length)`; `membership` is what the router takes for them.

        Of a part of a batch, `counts` `(groups,)` are the whole's tokens that predict one, `share` is of its rows.
        """
        activations: dict[str, torch.Tensor] = {}
        with self.router.route(membership, self.monitor) if self.router else nullcontext(activations) as activations:
            logits = self.output(tokens, documents)
        each = nn.functional.cross_entropy(
            at_least_float32(logits).flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none"
        )
        number = (group_index % len(self.names)).flatten()
        counts = self._counts(targets, group_index) if counts is None else counts
        means = each.new_zeros(len(self.names)).index_add(0, number, each) / counts.clamp(min=1)
        terms = [Term("model", name, "all", "cross_entropy") for name in self.names]
        shares = counts * torch.stack([torch.as_tensor(self.weights[term], device=counts.device) for term in terms])
        total = torch.where(shares > 0, counts, 0).sum().clamp(min=1)
        found: Terms = {term: (means[i], shares[i] / total) for i, term in enumerate(terms)}
        return found | self._penalties(activations, share)

    def _penalties(self, activations: Mapping[str, torch.Tensor], share: float) -> Terms:
        """The L1 terms of a part of a batch, from the sites' activations before the mask."""
        regions = self.router.regions if self.router else {}
        penalised = {term: regions[term.region] for term in self.weights if term.region in regions}
        sites = dict.fromkeys(site for region in penalised.values() for site in region.sites)
        by_unit = {site: l1_by_unit(site.units_last(activations[site.name])) for site in sites}
        sums = {t: torch.stack([r.take(by_unit[site]).sum() for site in r.sites]).sum() for t, r in penalised.items()}
        return {term: (value * share, self.weights[term]) for term, value in sums.items()}
