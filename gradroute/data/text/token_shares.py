"""Compute each group's share of each token by the rules of a configuration (GR section 4.2 and App. C)."""

from collections.abc import Sequence

import torch

from gradroute.config.schema import GroupConfig, RoutingConfig
from gradroute.data.text.corpora import Part, Texts
from gradroute.data.text.rules import by_weight, everywhere, occurrences, ratio_weights, variants
from gradroute.errors import UserError


def _share(
    data: Texts, part: Part, name: str, rule: GroupConfig | None, kind: str, own: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """Return a group's share of each token of a part; `own` are its documents there, `known` those in training."""
    try:
        if rule is not None and kind == "words":
            sequences = [sequence for word in rule.words for sequence in variants(data.tokenizer, word)]
            return occurrences(part.corpus, sequences) * everywhere(part.corpus, own)
        if kind == "frequent":
            return by_weight(part.corpus, ratio_weights(data.train.corpus, known, data.tokenizer.size), own)
    except UserError as error:
        raise UserError(f"routing.groups.{name}: {error}") from None
    return everywhere(part.corpus, own)


def shares_of(
    data: Texts, routing: RoutingConfig, names: Sequence[str], labelled: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Return the shares of the training tokens, `(total,)` by group; `labelled` `(documents,)` are group numbers or -1.

    Raises: UserError for words outside the vocabulary.
    """
    found = {}
    for number, name in enumerate(names):
        rule, own = routing.groups.get(name), labelled == number
        found[name] = _share(data, data.train, name, rule, rule.tokens if rule else "all", own, own)
    return found


def distinctive(
    data: Texts, routing: RoutingConfig, names: Sequence[str], train_groups: torch.Tensor, test_groups: torch.Tensor
) -> torch.Tensor | None:
    """Return how much of each test token is distinctive of a group of words or a pattern, `(total,)`; None without one.

    It uses all labels, and App. C where whole documents are routed, so it is the same for all runs on the same data,
    whatever their routes and labels. `train_groups` and `test_groups` are group numbers of documents.
    """
    found = []
    for number, name in enumerate(names):
        rule = routing.groups.get(name)
        if rule is not None and (rule.words or rule.pattern):
            kind = "words" if rule.tokens == "words" else "frequent"
            found.append(_share(data, data.test, name, rule, kind, test_groups == number, train_groups == number))
    return torch.stack(found).amax(0) if found else None
