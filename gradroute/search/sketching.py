"""Sketch the gradient of every data point of a task at a site: what clusters are made of."""

import torch

from gradroute.data.text.corpora import Part
from gradroute.errors import UserError
from gradroute.routing import Site
from gradroute.routing.sites import observed
from gradroute.search.clusters import directions, sketched_positions, sketches
from gradroute.search.signals import CHUNK
from gradroute.tasks.base import Task
from gradroute.tasks.images import ImageTask
from gradroute.tasks.language import LanguageModelling
from gradroute.training.objectives import Terms


def sketched(task: Task, site: Site, group: str, seed: int) -> list[torch.Tensor]:
    """Return the sketches of the training and of the test points at a site, `(points, numbers)`, without augmentation.

    Points are images, or documents; of documents that are validated on, if there are any, the sketches come third.

    Args:
        group: the task's only group. seed: of the projections.

    Raises: UserError for a task of neither.
    """
    if isinstance(task, ImageTask):
        return [_of_images(task, site, group, train, seed) for train in (True, False)]
    if not isinstance(task, LanguageModelling):
        raise UserError(f"{type(task).__name__}: its data cannot be grouped without labels; give groups")
    parts = (task.data.train, task.data.test, task.data.validation)
    return [_of_documents(task, site, group, part, seed) for part in parts if part is not None]


def _loss(terms: Terms, group: str) -> torch.Tensor:
    return torch.stack([value for term, (value, _) in terms.items() if term.group == group]).sum()


def _of_images(task: ImageTask, site: Site, group: str, train: bool, seed: int) -> torch.Tensor:
    images = task.train_images if train else task.test_images
    labels = task.data.train_labels if train else task.data.test_labels
    objective, found = task.objective(), list[torch.Tensor]()
    with observed(task.model, [site]) as seen:
        for chosen in torch.arange(len(images), device=task.device).split(8 * CHUNK):
            groups = torch.zeros(len(chosen), dtype=torch.int64, device=task.device)
            inputs = (images[chosen], labels[chosen]) if task.classifies else (images[chosen],)
            found.append(sketches(*_gradients(_loss(objective(*inputs, groups), group), seen[site.name], site), seed))
    return torch.cat(found)


def _of_documents(task: LanguageModelling, site: Site, group: str, part: Part, seed: int) -> torch.Tensor:
    """Return a direction for each document: documents in one row do not see each other, so each has its own sum."""
    packed, objective, sums = part.packed, task.objective(), torch.zeros(0)
    with observed(task.model, [site]) as seen:
        for chosen in torch.arange(len(packed)).split(CHUNK):
            rows = [t[chosen].to(task.device) for t in (packed.tokens, packed.targets, packed.documents)]
            groups = torch.zeros_like(rows[0])
            value = _loss(objective(*rows, groups, groups), group)
            positions = [t.flatten(0, 1) for t in _gradients(value, seen[site.name], site)]
            each, own = sketched_positions(positions[0], positions[1], seed), packed.documents[chosen].flatten()
            sums = sums if len(sums) else each.new_zeros(len(part.documents), each.shape[1])
            sums.index_add_(0, own[own >= 0], each[own >= 0])  # not of padding
    return directions(sums)


def _gradients(value: torch.Tensor, activation: torch.Tensor, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
    (gradient,) = torch.autograd.grad(value, activation)
    first, second = (site.units_last(t.detach()).float().cpu() for t in (gradient, activation))
    return first, second
