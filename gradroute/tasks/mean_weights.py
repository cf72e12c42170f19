"""The mean gradient weight of a group's tokens, over its documents with and without a label.

Where a share f of a group's documents is labelled, a route of weight w reaches only that share: a token that is routed
in full has the mean weight f * w + (1 - f) * d, where d is the weight of documents without a label.
"""

from dataclasses import dataclass

import torch

from gradroute.config.compensation import labelled_share, weights_of
from gradroute.data.text.token_shares import shares_of
from gradroute.routing.routes import read_route
from gradroute.tasks.language import LanguageModelling


@dataclass(frozen=True)
class MeanWeight:
    """Weights of a group in a region.

    weight: the route's. labelled: share of the group's documents that carry its label. routed: the mean weight of a
    token that is routed in full. every: the mean over all tokens of the group's documents. expected: `routed` with the
    configured share of labels, of which a sample differs.
    """

    group: str
    region: str
    weight: float
    labelled: float
    routed: float
    every: float
    expected: float


def mean_weights(task: LanguageModelling) -> list[MeanWeight]:
    """Return the mean weights of every group whose gradient is reduced in a region, in training."""
    routing, corpus, found = task.config.routing, task.data.train.corpus, list[MeanWeight]()
    routes = weights_of(routing)
    shares = shares_of(task.data, routing, task.names, task.labelled)
    for number, group in enumerate(task.names):
        own = task.train_groups == number
        labelled = own & (task.labelled == number)
        fraction = float(labelled.sum()) / int(own.sum())
        inside = own[corpus.documents]
        share = torch.where(labelled[corpus.documents], shares[group], 0)[inside].double().mean().item()
        tokens_labelled = labelled[corpus.documents][inside].double().mean().item()
        for region, spec in routes.get(group, {}).items():
            weight = read_route(spec, f"routing.routes.{group}.{region}").weight
            default = routes.get(routing.unlabelled or "", {}).get(region, 1.0)
            other = read_route(default, f"routing.routes.{routing.unlabelled}.{region}").weight
            if weight < 1:
                routed = fraction * weight + (1 - fraction) * other
                every = share * weight + (tokens_labelled - share) + (1 - tokens_labelled) * other
                configured = labelled_share(routing, group) if group in routing.groups else 1.0
                expected = configured * weight + (1 - configured) * other
                found.append(MeanWeight(group, region, weight, fraction, routed, every, expected))
    return found
