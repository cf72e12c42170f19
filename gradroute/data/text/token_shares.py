"""How much of each token is each group's, by the rules of a configuration (GR section 4.2 and App. C)."""

from collections.abc import Sequence

import torch

from gradroute.config.schema import GroupConfig, RoutingConfig
from gradroute.data.text.corpora import Part, Texts
from gradroute.data.text.rules import by_weight, everywhere, occurrences, ratio_weights, variants


def _share(
    data: Texts, part: Part, rule: GroupConfig | None, kind: str, own: torch.Tensor, known: torch.Tensor
) -> torch.Tensor:
    """One group's share of each token of a part: `own`, its documents there; `known`, those to train on that count."""
    if rule is not None and kind == "words":
        sequences = [sequence for word in rule.words for sequence in variants(data.tokenizer, word)]
        return occurrences(part.corpus, sequences) * everywhere(part.corpus, own)
    if kind == "frequent":
        return by_weight(part.corpus, ratio_weights(data.train.corpus, known, data.tokenizer.size), own)
    return everywhere(part.corpus, own)


def shares_of(
    data: Texts, routing: RoutingConfig, names: Sequence[str], labelled: torch.Tensor
) -> dict[str, torch.Tensor]:
    """Shares of the tokens to train on, `(total,)` by group; `labelled` `(documents,)` are group numbers, -1 for none.

    Raises: UserError for words that are not in the vocabulary.
    """
    found = {}
    for number, name in enumerate(names):
        rule, own = routing.groups.get(name), labelled == number
        found[name] = _share(data, data.train, rule, rule.tokens if rule else "all", own, own)
    return found


def distinctive(
    data: Texts, routing: RoutingConfig, names: Sequence[str], train_groups: torch.Tensor, test_groups: torch.Tensor
) -> torch.Tensor | None:
    """How much of each test token is a group's, `(total,)`, with every label known; None where no words choose it.

    The same for all runs on the same data, whatever their routes and labels are: where whole documents are routed, it
    is by App. C. The arguments are group numbers of documents.
    """
    found = []
    for number, name in enumerate(names):
        rule = routing.groups.get(name)
        if rule is not None and (rule.words or rule.pattern):
            kind = "words" if rule.tokens == "words" else "frequent"
            found.append(_share(data, data.test, rule, kind, test_groups == number, train_groups == number))
    return torch.stack(found).amax(0) if found else None
