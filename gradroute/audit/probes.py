"""Probes: what small readers find in a frozen, ablated model of the group that the model itself no longer shows.

- Images: a fresh certificate, a linear one and a stronger one read all units that are left at the region's site, and
  are trained on the group's images.
- Documents: a linear probe and one with a hidden layer tell the right next token from a wrong one of the same
  frequency, by the features of the token itself, on documents that they were not trained on.
"""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from gradroute.audit.attacks import constant, train
from gradroute.audit.material import FOLDS, FORGET, TEST, VALIDATION, Documents, Pictures
from gradroute.audit.measures import auroc
from gradroute.data.text.corpora import Part
from gradroute.models.base import certificate_of
from gradroute.models.logits import Divided
from gradroute.routing import Site
from gradroute.routing.sites import undisturbed
from gradroute.tasks.evaluation import activations_at

BATCH = 256
HIDDEN = 64  # units of the probe with a hidden layer
STRONGER = 1024  # units of each hidden layer of the stronger certificate
LEAST = 5  # a token counts as the group's own if it is so many times as frequent in its documents
DECAY = 1e-3  # of a probe's weights, which are many for the few documents
CERTIFICATES = ("linear", "fresh", "stronger")
PROBES = ("linear", "hidden")


def certificate(kind: str, model: nn.Module, shape: Sequence[int], outputs: int, seed: int) -> nn.Module:
    """Return an untrained certificate for activations of `shape`, without the batch axis, drawn by `seed`."""
    width = math.prod(shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if kind == "fresh":
            return certificate_of(model, torch.Size(shape), outputs)
        if kind == "linear":
            return nn.Sequential(nn.Flatten(), nn.Linear(width, outputs))
        layers = (nn.Linear(width, STRONGER), nn.ReLU(), nn.Linear(STRONGER, STRONGER), nn.ReLU())
        return nn.Sequential(nn.Flatten(), *layers, nn.Linear(STRONGER, outputs))


def certified(
    material: Pictures, model: nn.Module, site: Site, kind: str, points: int, updates: int, rates: Sequence[float]
) -> list[float]:
    """Return a certificate's test errors, by fold, at the rate with the lowest validation error.

    Args:
        site: whose activations, ablated where the model is, it reads. points: training images of the group.
    """
    images, targets = material.batch(material.chosen(FORGET, points, 0))
    parts = {part: material.tested(FORGET, part) for part in (VALIDATION, TEST)}

    def seen(given: torch.Tensor) -> torch.Tensor:
        units = site.units_last(activations_at(model, [site], given)[site.name])
        return units.contiguous()

    own, validation, test = seen(images), seen(parts[VALIDATION][0]), seen(parts[TEST][0])
    best, found = math.inf, [math.nan] * FOLDS
    for rate in rates:
        reader = certificate(kind, material.task.model, own.shape[1:], material.task.outputs, material.seed)
        reader.to(own.device)
        order = torch.Generator().manual_seed(material.seed)
        rows = [torch.randint(len(own), (min(BATCH, len(own)),), generator=order) for _ in range(updates)]

        def loss(update: int, reader: nn.Module = reader, rows: Sequence[torch.Tensor] = rows) -> torch.Tensor:
            chosen = rows[update].to(own.device)
            output = reader(own[chosen]).float().flatten(1)
            return material.task.error(output, targets[chosen]).mean()

        if train(list(reader.parameters()), loss, constant(rate), updates):
            error = sum(material.folds(material.predicted(reader, validation), parts[VALIDATION][1])) / FOLDS
            if error < best:
                best, found = error, material.folds(material.predicted(reader, test), parts[TEST][1])
    return found


def distinctive_tokens(material: Documents) -> torch.Tensor:
    """Return which tokens are `LEAST` times as frequent in the group's training documents as in others, `(size,)`."""
    corpus, task = material.task.data.train.corpus, material.task
    own = (task.train_groups == task.names.index(material.group))[corpus.documents]
    counts = [torch.bincount(corpus.tokens[part], minlength=task.data.tokenizer.size).double() for part in (own, ~own)]
    rates = [count / count.sum().clamp(min=1) for count in counts]
    found = (counts[0] >= LEAST) & (rates[0] > LEAST * rates[1])
    found[task.data.tokenizer.end] = False
    return found


def pairs(
    part: Part, tokens: torch.Tensor, documents: Sequence[int], limit: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return beginnings of documents that end in a token of the group, and the same with another such token.

    One place of each document, drawn at random, and not its first token. The wrong tokens are the right ones in another
    order, so that a token alone says nothing.

    Returns: `(2 n, limit)` int64, right ones first, padded with -1 on the right; and the length of each, `(2 n,)`.
    """
    generator = torch.Generator().manual_seed(seed)
    found: list[torch.Tensor] = []
    for number in documents:
        document = part.corpus.document(number)[:limit]
        places = torch.nonzero(tokens[document][1:]).flatten() + 1
        if len(places):
            place = int(places[torch.randint(len(places), (1,), generator=generator)])
            found.append(document[: place + 1])
    lengths = torch.tensor([len(own) for own in found] * 2)
    rows = torch.full((2 * len(found), limit), -1, dtype=torch.int64)
    last = torch.tensor([int(own[-1]) for own in found])
    wrong = shifted(last, generator)
    for row, own in enumerate(found):
        rows[row, : len(own)] = rows[len(found) + row, : len(own)] = own
        rows[len(found) + row, len(own) - 1] = wrong[row]
    differ = wrong != last
    keep = torch.cat([differ, differ])
    return rows[keep], lengths[keep]


def shifted(values: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return the same values in another order, in which as few as possible stay where they were."""
    order = torch.randperm(len(values), generator=generator)
    order = order[values[order].argsort(stable=True)]  # equal values side by side
    most = int(torch.bincount(values).max()) if len(values) else 0
    moved = torch.empty_like(values)
    moved[order] = values[order].roll(most)
    return moved


def features(material: Documents, model: nn.Module, rows: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Return what the output layer reads at the last token of every row, `(rows, width)`."""
    assert isinstance(model, Divided)
    found = []
    with undisturbed(model), torch.no_grad():
        for chunk, ends in zip(rows.split(64), lengths.split(64), strict=True):
            seen = model.features(chunk.clamp(min=0).to(material.task.device)).float()
            found.append(seen[torch.arange(len(chunk)), ends.to(seen.device) - 1])
    return torch.cat(found)


def probed(
    material: Documents, model: nn.Module, kind: str, points: int, updates: int, rates: Sequence[float], sample: int
) -> float:
    """Return a probe's AUROC on test documents, at the rate with the highest on validation ones; nan without pairs.

    Args:
        points: training documents of the group, at most. sample: which choice of them.
    """
    task, limit, tokens = material.task, material.task.data.length, distinctive_tokens(material)
    numbers = material.chosen(FORGET, points, sample)
    sources = {"train": (task.data.train, numbers)}
    for part in (VALIDATION, TEST):
        held = task.validation.part if part == VALIDATION and task.validation.held_out else task.data.test
        sources[part] = (held, material.measured[FORGET, part].tolist())
    seen: dict[str, torch.Tensor] = {}
    for place, (name, (part_of, documents)) in enumerate(sources.items()):
        rows, lengths = pairs(part_of, tokens, documents, limit, material.seed * 1000 + sample * 10 + place)
        if len(rows) < 2 * FOLDS:
            return math.nan
        seen[name] = features(material, model, rows, lengths)
    mean, spread = seen["train"].mean(0), seen["train"].std(0).clamp(min=1e-6)
    seen = {name: (own - mean) / spread for name, own in seen.items()}
    own = seen["train"]
    labels = torch.arange(len(own), device=own.device) < len(own) // 2
    best, found = -math.inf, math.nan
    for rate in rates:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(material.seed)
            layers = [nn.Linear(own.shape[1], HIDDEN), nn.ReLU()] if kind == "hidden" else []
            reader = nn.Sequential(*layers, nn.Linear(HIDDEN if layers else own.shape[1], 1)).to(own.device)

        def loss(update: int, reader: nn.Module = reader, own: torch.Tensor = own) -> torch.Tensor:
            decay = torch.stack([p.square().sum() for p in reader.parameters()]).sum()
            return F.binary_cross_entropy_with_logits(reader(own)[:, 0], labels.float()) + DECAY * decay

        if train(list(reader.parameters()), loss, constant(rate), updates):
            with torch.no_grad():
                scores = {name: reader(each)[:, 0].cpu() for name, each in seen.items()}
            areas = {name: auroc(*(half.tolist() for half in each.chunk(2))) for name, each in scores.items()}
            if areas[VALIDATION] > best:
                best, found = areas[VALIDATION], areas[TEST]
    return found
