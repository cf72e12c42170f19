"""Which of a pilot's candidates are tried, which one is chosen, and why.

A pilot is short, so its scores are often all near 0. Then the bottleneck is chosen: the narrowest site of those that
nothing passes by, so that what is kept apart there is kept apart. A model of residual blocks may have none among its
candidates, such as a transformer's MLPs; then it is the narrowest of those whose ablation costs at least half of what
that of the strongest does.
"""

from collections.abc import Sequence

from gradroute.search.found import Evidence, Found

CLEAR = 0.1  # score from which on a site counts as keeping the groups apart
HOLDS = 0.5  # share of what the strongest candidate holds, from which on a site can be the bottleneck


def bottleneck(evidence: Sequence[Evidence]) -> int:
    """Return the candidate with the fewest numbers per data point among those that nothing passes by.

    Without one, it is that of those that hold half of the most, or more.
    """
    passed = [n for n, one in enumerate(evidence) if one.only_way]
    holding = passed or [n for n, one in enumerate(evidence) if (one.held or 0.0) >= HOLDS]
    return min(holding or range(len(evidence)), key=lambda n: evidence[n].numbers)


def tried(evidence: Sequence[Evidence], count: int) -> list[int]:
    """Return the candidates to try: those with the most conflict, and the bottleneck."""
    order = sorted(range(len(evidence)), key=lambda n: -(evidence[n].conflict or 0.0))[:count]
    neck = bottleneck(evidence)
    return order if neck in order else [*order[: count - 1], neck]


def chosen(evidence: Sequence[Evidence], order: Sequence[int]) -> int:
    """Return the candidate with the best score of those that were tried; the bottleneck if none is clear."""
    best = max(order, key=lambda n: (evidence[n].score or 0.0, evidence[n].conflict or 0.0))
    return best if _clear(evidence[best]) else bottleneck(evidence)


def _clear(one: Evidence) -> bool:
    return (one.score or 0.0) >= CLEAR


def why(found: Found, checked: int, whole: int) -> str:
    """Return the paragraph that says why a mask was chosen."""
    site, count = found.site, len(found.evidence)
    sizes = ", ".join(f"{site.owner.count(n)} for {group}" for n, group in enumerate(found.groups))
    weights = sorted({w for n, row in enumerate(site.outside) for m, w in enumerate(row) if m != n})
    said = f"{weights[0]:g}" if len(weights) == 1 else f"{weights[0]:g} to {weights[-1]:g}"
    told = 100 * (1 - sum(site.leak or [0]) / len(found.groups))
    kind = "that nothing passes by" if site.only_way else f"that hold {HOLDS:g} or more of what the strongest holds"
    narrow = (
        f" No candidate reached {CLEAR:g}, so this is the bottleneck: the narrowest site, {site.numbers} numbers per "
        f"data point, of those {kind}."
    )
    return (
        f"A pilot of {found.updates} updates, {100 * found.updates / whole:.0f} % of a run, compared the gradients of "
        f"the groups {', '.join(found.groups)} at {count} candidate sites and tried {checked}: those with the most "
        f"conflict, and the bottleneck.\n"
        f"Chosen: {site.name}, with a score of {site.score or 0:.3f}. The score is 1 if ablating a group's units harms "
        f"that group alone, and 0 or less if it harms the others as much, relative to the sites that were tried; it is "
        f"multiplied by the share of a group's units that the others' units do not predict, here {told:.0f} %."
        f"{'' if _clear(site) else narrow}\n"
        f"Conflict at this site: {100 * (site.conflict or 0):.0f} % of what one group's step does to another's loss "
        f"raises it. Units: {sizes}, by the groups' shares of each unit's gradient norm (the groups use the same "
        f"inputs to {site.overlap or 0:.2f} of 1). Gradient weight outside of a group's own units: {said}."
    )
