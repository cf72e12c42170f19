"""Leakage: how many forget tokens a plain model must see for a loss (SGTM, arXiv 2512.05648, definition G.1)."""

import itertools
from collections.abc import Sequence

from gradroute.audit.anchors import for_anchor
from gradroute.config.build import from_mapping
from gradroute.config.identity import to_mapping
from gradroute.config.schema import Config
from gradroute.tasks.language import LanguageModelling

Points = Sequence[tuple[int, Sequence[float]]]  # forget tokens seen, and the losses by fold


def exposed(config: Config, group: str, share: float) -> Config:
    """Return the configuration of an unrouted model that trains on a share of the group's documents and on all others.

    The same updates: the loss on the group's other documents has weight 0.
    """
    changed = for_anchor(config)
    changed.routing.routes, changed.routing.unlabelled = {}, None
    changed.routing.groups[group].labelled = 1 - share
    changed.losses.groups = {**changed.losses.groups, group: 0.0}
    return from_mapping(to_mapping(changed))


def unlabelled_tokens(task: LanguageModelling, group: str) -> int:
    """Return the number of tokens in the group's training documents that have no label."""
    own = (task.train_groups == task.names.index(group)) & (task.labelled == -1)
    return int(task.data.train.corpus.lengths[own].sum())


def worth(losses: Sequence[float], points: Points) -> list[float]:
    """Return, for each fold, the number of forget tokens with which a plain model has the loss, between two points.

    0 for a loss that is no lower than without them, and the largest number for one that is lower than all.

    Args:
        points: the first is a model that saw none; tokens ascending.
    """
    found = []
    for fold, loss in enumerate(losses):
        reached = float(points[-1][0])
        for (fewer, before), (more, after) in itertools.pairwise(points):
            if loss >= after[fold]:
                span = before[fold] - after[fold]
                part = min(1.0, max(0.0, (before[fold] - loss) / span)) if span > 0 else 0.0
                reached = fewer + part * (more - fewer)
                break
        found.append(reached)
    return found
