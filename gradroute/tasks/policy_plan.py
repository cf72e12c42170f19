"""How long a policy trains, and the units of what is measured of it."""

PER_STEP = "mean over the steps of the batch or group"
UNITS = {
    "return": "discounted true reward, mean over the steps of all worlds",
    "greedy_return": "the same, if the policy takes the most likely action in every step",
    "seen_return": "discounted true reward, mean over the steps of episodes whose ending is seen",
    "seen": "share of steps of episodes whose ending is seen, 0 to 1",
    "share": "share of all steps, 0 to 1",
    "gate": "share of the first expert, 0 to 1, mean over steps",
    "policy_gradient": f"nats times return, {PER_STEP}",
    "entropy": f"nats, {PER_STEP}",
    "value_error": f"squared return, {PER_STEP}",
    "gate_cross_entropy": "nats, mean over the steps of groups that say what the gate is to be",
}


def schedule(epochs: int, updates: int, share: float) -> tuple[int, int]:
    """Return epochs, and updates in each, whose product is that share of `epochs * updates`, at least one update."""
    total = max(1, round(epochs * updates * share))
    own = next(own for own in range(min(updates, total), 0, -1) if total % own == 0)
    return total // own, own
