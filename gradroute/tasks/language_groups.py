"""Assign documents to groups, and choose the documents that steps validate on."""

from dataclasses import dataclass

import torch

from gradroute.config.schema import RoutingConfig
from gradroute.data.groups import OF_TEST, Groups, assign
from gradroute.data.groups import Part as Rules
from gradroute.data.text.corpora import Part, Texts, some
from gradroute.data.text.packing import without
from gradroute.data.text.rules import memberships
from gradroute.data.text.token_shares import shares_of
from gradroute.errors import UserError

VALIDATED = 50  # test documents of each group


@dataclass(frozen=True)
class Validation:
    """Documents to choose by, and their group numbers, `(documents,)`; `held_out`: whether none is tested on."""

    part: Part
    groups: torch.Tensor
    held_out: bool


def _read_by_rules(part: Part) -> Rules:
    return Rules(part.documents.texts, torch.zeros(len(part.documents), dtype=torch.int64), part.documents.columns)


def grouped(data: Texts, routing: RoutingConfig, seed: int) -> Groups:
    """Return the group numbers of the training and test documents. Raises: UserError."""
    return assign(routing, _read_by_rules(data.train), _read_by_rules(data.test), seed)


def validation_of(data: Texts, routing: RoutingConfig, groups: Groups) -> Validation:
    """Return the data set's own validation documents; if it has none, the first test documents of each group.

    Raises: UserError if a group has test documents, and none of the validation documents.
    """
    if data.validation is None:
        first = [torch.nonzero(groups.test == number).flatten()[:VALIDATED] for number in range(len(groups.names))]
        chosen = torch.cat(first)
        return Validation(some(data.test, chosen.tolist(), data.length), groups.test[chosen], held_out=False)
    key = f"dataset.validation_stories={len(data.validation.documents)}"
    try:
        numbers = assign(routing, _read_by_rules(data.train), _read_by_rules(data.validation), 0).test
    except UserError as error:
        raise UserError(f"{key}: {str(error).removeprefix(OF_TEST)}") from None
    for number, name in enumerate(groups.names):
        if bool((groups.test == number).any()) and not bool((numbers == number).any()):
            raise UserError(f"{key}: none of them is in group '{name}'; raise it")
    return Validation(data.validation, numbers, held_out=True)


def routed_rows(
    data: Texts, routing: RoutingConfig, groups: Groups
) -> tuple[tuple[torch.Tensor, ...], torch.Tensor, torch.Tensor | None]:
    """Return the training rows, group numbers of their tokens, and the tokens' shares in the groups.

    The rows are tokens, targets and documents, `(rows, length)` each, with padding in place of documents that are left
    out. The group number of padding, and of what is in no group, is -1. Shares are None unless a rule weighs tokens.
    """
    corpus, packed = data.train.corpus, data.train.packed
    rows = without(packed, groups.train, [groups.names.index(name) for name in routing.left_out])
    routed = packed.spread(groups.routed[corpus.documents] + 1) - 1
    routed[rows[2] < 0] = -1
    if all(rule.tokens == "all" for rule in routing.groups.values()):
        return rows, routed, None
    shares = memberships(corpus, packed, shares_of(data, routing, groups.names, groups.routed))
    shares[rows[2] < 0] = 0
    return rows, routed, shares
