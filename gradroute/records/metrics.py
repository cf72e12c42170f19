"""The columns of `metrics.csv` and `ledger.csv`, and the units of the built-in metrics."""

from collections.abc import Sequence
from typing import Any

COLUMNS = ("step", "split", "group", "head", "region", "metric", "unit", "value")
LEDGER_COLUMNS = (
    "from_step", "to_step", "group", "region", "points", "weight_min", "weight_max", "measured",
    "activation", "routed", "unrouted", "moved", "shifted",
)  # fmt: skip
UNITS = {
    "mse": "squared pixel, pixels in [-1, 1]",
    "mae": "pixel, pixels in [-1, 1]",
    "cross_entropy_unrouted": "nats per token, without the tokens that are mostly a group's (GR App. C)",
    "misdirection": "squared distance to the target, mean over width",
    "drift": "squared distance to what it was, mean over width",
    "uniform_divergence": "nats per token, KL divergence from the uniform distribution",
    "bounded_cross_entropy": "nats per token, each token at most the logarithm of the vocabulary",
    "distillation": "nats per token, KL divergence from the teacher's distribution",
    "best_rate": "share of trainer.lr",
    "related_share": "share of the nearest tokens that are related words, 0 to 1",
    "related_frequency": "share of the tokens of texts that are of related words, 0 to 1",
    "routed_frequency": "share of the tokens of texts that are of routed words, 0 to 1",
    "cross_entropy": "nats per token or image",
    "accuracy": "share of images, 0 to 1",
    "l1": "mean L1 norm of the region's activations",
    "correlation": "mean |correlation|, 0 to 1",
    "localization": "0 to 1",
    "activation_norm": "L2 norm per image, root mean square",
    "gradient_norm": "L2 norm per image of the gradient of its mae or cross_entropy, root mean square",
}
ERRORS = ("mse", "mae", "accuracy", "cross_entropy", "cross_entropy_unrouted")  # errors of heads on the test data
PROFILE = "profile"  # head of an access profile, of which the region says which
DOSE = "_dose_"  # in such a region, before the dose of its module
RELEARNED = "model_relearned_"  # head of a relearned model; the number of documents follows
ATTACKED = "model_attacked"  # head of the model that the attacker of the step `extract` trained
UNKEPT = (RELEARNED, ATTACKED)  # heads, or their beginnings, whose weights a finished run does not keep


def final_rows(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the test rows of the last step."""
    last = max((row["step"] for row in rows), default=0)
    return [row for row in rows if row["split"] == "test" and row["step"] == last]
