"""Routes whose weights make up for points without a label (`routing.compensate`)."""

from typing import Any

from gradroute.config.schema import NoiseConfig, RoutingConfig
from gradroute.routing.routes import read_route

LIMIT = 10.0  # of a weight's size, if `routing.compensate_limit` is null


def labelled_share(routing: RoutingConfig, group: str) -> float:
    """Return the share of a group's points that the configuration leaves labelled."""
    own = routing.groups[group].labelled
    share = routing.labelled_fraction if own is None else own
    return share * (1 - routing.label_noise.get(group, NoiseConfig()).false_negative)


def weights_of(routing: RoutingConfig) -> dict[str, dict[str, Any]]:
    """Return the configured routes, with weights below 1 replaced if `routing.compensate` is `labels`.

    If a share f of a group's points is labelled, a routed token has weight w in these and 1 in the others, on average
    f * w + 1 - f, which is 0 for w = -(1 - f) / f.
    """
    limit = LIMIT if routing.compensate_limit is None else routing.compensate_limit
    found = {group: dict(row) for group, row in routing.routes.items()}
    if routing.compensate is None:
        return found
    for group, row in found.items():
        share = labelled_share(routing, group)
        for region, spec in row.items():
            route = read_route(spec, f"routing.routes.{group}.{region}")
            if route.weight < 1 and share > 0:
                weight = max(-(1 - share) / share, -limit)
                row[region] = weight if route.forward == 1 else {"weight": weight, "forward": route.forward}
    return found
