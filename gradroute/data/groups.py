"""Assign data points to groups, the named and disjoint parts of the data, and decide which points are labelled."""

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gradroute.config.schema import GroupConfig, NoiseConfig, RoutingConfig
from gradroute.data.text.rules import by_pattern, by_words
from gradroute.errors import UserError, unknown

UNASSIGNED = "unassigned"
OF_TEST = "in the test data, "


@dataclass(frozen=True)
class Part:
    """The data that rules read: images `(n, pixels)` or texts, labels `(n,)`, and metadata columns by name."""

    points: torch.Tensor | Sequence[str]
    labels: torch.Tensor
    columns: Mapping[str, Sequence[str]]


@dataclass
class Groups:
    """Group numbers: `train` `(n,)` and `test` `(m,)` by the rules, `routed` `(n,)` by the labels that training sees.

    In `routed`, -1 is a point without a label, which takes the default route, every weight 1. If `routing.unlabelled`
    names a group, such points have its number instead. The last of `names` is `unassigned` if points are in no group.
    """

    names: list[str]
    train: torch.Tensor
    test: torch.Tensor
    routed: torch.Tensor


def load_predicate(path: str) -> Callable[..., Any]:
    """Import the function `module:function`; modules in the current folder are found. Raises: UserError."""
    module, _, name = path.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"predicate={path}: cannot be imported ({error}); give module:function") from None
    finally:
        sys.path.remove(here)
    if not callable(found):
        raise UserError(f"predicate={path}: is a {type(found).__name__}, not a function")
    return found  # type: ignore[no-any-return]


def _members(name: str, rule: GroupConfig, part: Part) -> torch.Tensor:
    """Return which points the group's rule selects, `(n,)` bool."""
    if rule.predicate is not None:
        chosen = torch.as_tensor(load_predicate(rule.predicate)(part.points, part.labels))
        if chosen.dtype != torch.bool or chosen.shape != part.labels.shape:
            got = f"{chosen.dtype} of shape {tuple(chosen.shape)}"
            raise UserError(f"predicate={rule.predicate}: returned {got}; return bool {tuple(part.labels.shape)}")
        return chosen.to(part.labels.device)
    if rule.column is not None:
        if rule.column not in part.columns:
            raise unknown(f"column of routing.groups.{name}:", rule.column, part.columns)
        values = {str(value) for value in rule.values}
        return torch.tensor([value in values for value in part.columns[rule.column]], device=part.labels.device)
    if rule.words or rule.pattern is not None:
        if isinstance(part.points, torch.Tensor):
            raise UserError(
                f"routing.groups.{name}: words and pattern select documents; use labels or column for images"
            )
        try:
            return by_words(part.points, rule.words) if rule.words else by_pattern(part.points, str(rule.pattern))
        except UserError as error:
            raise UserError(f"routing.groups.{name}: {error}") from None
    return torch.isin(part.labels, torch.tensor(rule.labels, device=part.labels.device))


def _numbers(routing: RoutingConfig, part: Part) -> torch.Tensor:
    """Return each point's group number, -1 for none. Raises: UserError if groups overlap."""
    numbers = torch.full_like(part.labels, -1)
    for number, (name, rule) in enumerate(routing.groups.items()):
        if rule.rest:
            continue
        members = _members(name, rule, part)
        both = members & (numbers >= 0)
        if bool(both.any()):
            other = list(routing.groups)[int(numbers[both][0])]
            raise UserError(f"routing.groups: {int(both.sum())} points are in '{other}' and '{name}'; groups must not "
                            "overlap")  # fmt: skip
        numbers[members] = number
    for number, rule in enumerate(routing.groups.values()):
        if rule.rest:
            numbers[numbers == -1] = number
    return numbers


def assign(routing: RoutingConfig, train: Part, test: Part, seed: int) -> Groups:
    """Apply every group's rule to the data, then remove labels and add label errors as configured.

    A share `routing.labelled_fraction`, or the group's own `labelled`, of each group's training points, chosen by
    `seed`, keep their label. Of the points labelled `g`, a share `false_negative` lose it; of those outside `g`, a
    share `false_positive` get it.

    Raises: UserError for an unknown label or column, a group without training points, overlapping groups, or points in
        no group if `routing.unassigned` is `error`.
    """
    present = sorted(int(label) for label in train.labels.unique())
    for name, rule in routing.groups.items():
        for label in rule.labels:
            if label not in present:
                raise unknown(f"label in routing.groups.{name}.labels:", label, present)
    names, numbers = list(routing.groups), [_numbers(routing, train)]
    try:
        numbers.append(_numbers(routing, test))
    except UserError as error:
        raise UserError(f"{OF_TEST}{error}") from None
    for number, name in enumerate(names):
        if not bool((numbers[0] == number).any()):
            raise UserError(f"routing.groups.{name}: has no training point; widen its rule or use more data")
    missing = [part_numbers == -1 for part_numbers in numbers]
    if any(bool(m.any()) for m in missing):
        if routing.unassigned == "error":
            labels = sorted({int(x) for part, m in zip((train, test), missing, strict=True) for x in part.labels[m]})
            raise UserError(f"routing.groups: points with labels {labels} are in no group; add them to one, or set "
                            "routing.unassigned=unrouted to train on them with every weight 1")  # fmt: skip
        for part_numbers, m in zip(numbers, missing, strict=True):
            part_numbers[m] = len(names)
        names.append(UNASSIGNED)
    routed = _labelled(numbers[0].cpu(), routing, seed).to(numbers[0].device)
    return Groups(names, numbers[0], numbers[1], routed)


def replaced(groups: Groups, left_out: Sequence[str], seed: int) -> torch.Tensor:
    """Return the number of the training point that stands in each one's place, `(n,)`.

    A point of a group in `left_out` gets another point, drawn at random; every other point is its own. So as many
    updates are made as with all points.
    """
    numbers = torch.tensor([groups.names.index(name) for name in left_out], dtype=torch.int64)
    out = torch.isin(groups.train.cpu(), numbers)
    places, others = torch.arange(len(out)), torch.nonzero(~out).flatten()
    generator = torch.Generator().manual_seed(seed)
    places[out] = others[torch.randint(len(others), (int(out.sum()),), generator=generator)]
    return places.to(groups.train.device)


def _labelled(true: torch.Tensor, routing: RoutingConfig, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    keep, mistake, lost = torch.rand(3, len(true), generator=generator)
    seen, low = true.clone(), torch.zeros(len(true))
    for number, name in enumerate(routing.groups):
        rates = routing.label_noise.get(name, NoiseConfig())
        outside = true != number
        high = low + rates.false_positive
        seen[outside & (mistake >= low) & (mistake < high)] = number
        low = torch.where(outside, high, low)
    for number, name in enumerate(routing.groups):
        rate = routing.label_noise.get(name, NoiseConfig()).false_negative
        seen[(true == number) & (seen == number) & (lost < rate)] = -1
    shares = [rule.labelled for rule in routing.groups.values()]
    fractions = [routing.labelled_fraction if share is None else share for share in shares]
    fractions += [routing.labelled_fraction]  # of points in no group, which have the next number, or -1
    seen[keep >= torch.tensor(fractions)[seen]] = -1
    if routing.unlabelled is not None:
        seen[seen == -1] = list(routing.groups).index(routing.unlabelled)
    return seen
