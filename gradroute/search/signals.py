"""Measure groups at candidate sites of a trained model: their gradients, and what ablating units does to them."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import torch

from gradroute.errors import UserError
from gradroute.routing import Region, Site
from gradroute.routing.ablation import Ablation, replaced
from gradroute.routing.sites import call, observed, undisturbed
from gradroute.search import agreement
from gradroute.search.agreement import Signals
from gradroute.search.candidates import Candidate, tensors
from gradroute.tasks.base import Task
from gradroute.training.devices import computing
from gradroute.training.objectives import Batch, Objective

CHUNK = 32  # data points in a pass
ABLATED = 256  # data points of each group whose loss under an ablation is measured, at most
SAME = 1e-5  # largest difference of outputs that are the same, as a share of their size
APART = ("certificate", "penalty")  # heads of terms that are not the task's loss


def rows_of(task: Task, group: int, points: int, seed: int) -> torch.Tensor:
    """Return row numbers of up to `points` training points of a group, drawn at random, or of rows with its tokens."""
    own = (task.routed == group).flatten(1).any(1) if task.routed.dim() > 1 else task.routed == group
    found = torch.nonzero(own).flatten()
    order = torch.randperm(len(found), generator=torch.Generator().manual_seed(seed)).to(found.device)
    return found[order[:points]]


def group_losses(
    task: Task, objective: Objective, group: int, rows: torch.Tensor
) -> Iterator[tuple[torch.Tensor, int]]:
    """Yield the mean loss of a group's own points or tokens in each chunk of rows, with their number."""
    for chunk in rows.split(CHUNK):
        batch: Batch = task.batch(chunk)
        with computing(task.config.trainer.precision, task.device):
            terms = objective(*batch)
        own = [
            value for term, (value, _) in terms.items() if term.group == task.names[group] and term.head not in APART
        ]
        if own:
            yield torch.stack(own).sum(), int((task.group_index(batch) == group).sum())


def measure(
    task: Task, sites: Sequence[Site], rows: Sequence[torch.Tensor], seed: int, named: str = ""
) -> tuple[dict[str, Signals], int]:
    """Return the signals of every site by name, and the number of backward passes.

    Sites that no loss depends on are left out; if the user named them, in the key `named`, they raise UserError.

    Args:
        rows: row numbers of each group.
        seed: of the projection of wide sites, see `agreement.projection`.
    """
    objective, found, passes = task.objective(), dict[str, Signals](), 0
    for group, own in enumerate(rows):
        for value, activations in _observed(task, objective, group, own, sites):
            given = [site for site in sites if activations[site.name].requires_grad]
            seen = [activations[site.name] for site in given]
            gradients = torch.autograd.grad(value[0] * value[1], seen, allow_unused=True)
            passes += 1
            for site, activation, gradient in zip(given, seen, gradients, strict=True):
                if gradient is not None:
                    _add(found, site, group, len(rows), activation.detach(), gradient, seed)
    lost = [site.name for site in sites if site.name not in found]
    if named and lost:
        raise UserError(f"{named}: site '{lost[0]}' is in the forward path of no loss; name another module")
    return found, passes


def _observed(
    task: Task, objective: Objective, group: int, rows: torch.Tensor, sites: Sequence[Site]
) -> Iterator[tuple[tuple[torch.Tensor, int], dict[str, torch.Tensor]]]:
    with observed(task.model, sites) as seen:
        for value in group_losses(task, objective, group, rows):
            yield value, dict(seen)


def _add(
    found: dict[str, Signals], site: Site, group: int, groups: int, activation: torch.Tensor, gradient: torch.Tensor,
    seed: int,
) -> None:  # fmt: skip
    points = [site.units_last(t).float().flatten(0, -2).cpu() for t in (gradient, activation)]
    reached = points[0].abs().sum(1) > 0  # of a language model, tokens of other documents are not
    gradients, inputs = points[0][reached], points[1][reached]
    matrix = agreement.projection(inputs.shape[1], seed)
    inputs = inputs if matrix is None else inputs @ matrix
    if site.name not in found:
        found[site.name] = Signals.empty(groups, gradients.shape[1], inputs.shape[1])
    found[site.name].add(group, gradients, inputs)


def losses(task: Task, rows: Sequence[torch.Tensor], ablation: Ablation | None = None) -> list[float]:
    """Return the mean loss of each group on its rows, under an ablation if one is given."""
    objective, found = task.objective(), []
    with ablation.applied(task.model) if ablation else nullcontext():
        for group, own in enumerate(rows):
            each = [(float(value.detach()), n) for value, n in group_losses(task, objective, group, own[:ABLATED])]
            found.append(sum(value * n for value, n in each) / max(1, sum(n for _, n in each)))
    return found


def silenced(candidate: Candidate, units: Sequence[int]) -> Ablation:
    """Return the ablation that sets some units to 0 at every site of a candidate."""
    first = candidate.sites[0]
    region = Region(tuple(s.module for s in candidate.sites), tuple(units), first.axis, first.output, first.batch_axis)
    zeros = replaced(region, lambda site, activation: torch.zeros_like(region.at(activation, site)))
    return Ablation(candidate.name, zeros)


def rises(
    task: Task, rows: Sequence[torch.Tensor], candidate: Candidate, owner: torch.Tensor
) -> tuple[list[list[float]], list[float]]:
    """Return how far each group's loss rises if one group's units are ablated, and if all are.

    Returns: a row for each ablated group with a number for each group; and a number for each group.
    """
    before, found = losses(task, rows), []
    for group in range(len(rows)):
        units = torch.nonzero(owner == group).flatten().tolist()
        after = losses(task, rows, silenced(candidate, units))
        found.append([a - b for a, b in zip(after, before, strict=True)])
    return found, whole_rises(task, rows, candidate, before)


def whole_rises(task: Task, rows: Sequence[torch.Tensor], candidate: Candidate, before: Sequence[float]) -> list[float]:
    """Return how far each group's loss rises from `before` if all units of a candidate are ablated."""
    whole = losses(task, rows, silenced(candidate, range(candidate.units)))
    return [a - b for a, b in zip(whole, before, strict=True)]


def only_way(task: Task, candidate: Candidate) -> bool:
    """Return whether nothing passes by a candidate: without its units, the model returns the same for every data point.

    A site in a branch of a residual block is none: what it does not keep apart, the sum carries on.
    """
    with undisturbed(task.model), torch.no_grad(), silenced(candidate, range(candidate.units)).applied(task.model):
        found = [one for one in tensors(call(task.model, task.example())) if one.is_floating_point() and one.dim()]
    size = max((float(one.abs().max()) for one in found), default=0.0)
    return bool(found) and all(len(one) > 1 and float((one - one[:1]).abs().max()) <= SAME * size for one in found)


def narrowest(task: Task, found: Sequence[Candidate]) -> Candidate:
    """Return the candidate with the fewest numbers per data point of those that nothing passes by, or else of all."""
    passed = [one for one in found if only_way(task, one)]
    return min(passed or found, key=lambda one: one.numbers)


def leaks(task: Task, rows: Sequence[torch.Tensor], candidate: Candidate, owner: torch.Tensor) -> list[float]:
    """Return how much the others' units tell of each group's own, on its points, over the candidate's sites."""
    objective, found = task.objective(), []
    for group, own in enumerate(rows):
        seen: list[torch.Tensor] = []
        for _, activations in _observed(task, objective, group, own[:ABLATED], candidate.sites):
            flat = [site.units_last(activations[site.name]).detach().float() for site in candidate.sites]
            pooled = torch.cat([each.flatten(1, -2).mean(1) if each.dim() > 2 else each for each in flat], -1)
            seen.append(pooled.cpu())
        mine = (owner == group).repeat(len(candidate.sites))
        told = torch.cat(seen)
        found.append(agreement.leak(told[:, mine], told[:, ~mine]))
    return found
