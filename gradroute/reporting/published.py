"""The papers' results, to compare with measurements in the same setting."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

# GR (arXiv 2410.04332) table 2: bottom-half certificate, test set, mean of 20 runs and 95 % interval. The paper calls
# the column MAE; the numbers are mean squared errors. Rows 1 to 10, by `setting`.
_TABLE2 = {
    "dc3318b5": ((0.32, 0.02), (0.08, 0.00)),
    "0e6f9731": ((0.33, 0.02), (0.07, 0.00)),
    "b5d5af81": ((0.28, 0.02), (0.11, 0.01)),
    "6ab59298": ((0.32, 0.02), (0.32, 0.01)),
    "3414d6b7": ((0.09, 0.01), (0.08, 0.00)),
    "f26c899b": ((0.23, 0.02), (0.13, 0.01)),
    "018d37b6": ((0.27, 0.02), (0.11, 0.00)),
    "df472219": ((0.08, 0.01), (0.08, 0.00)),
    "8d4d2dd9": ((0.13, 0.01), (0.13, 0.01)),
    "95ef059a": ((0.08, 0.01), (0.09, 0.00)),
}
TOLERANCE = 0.02  # a mean may be off by this plus its own half-width
Key = tuple[str, str, str, str]  # head, region, group, metric

# by setting, then by measurement: (value, half-width of the 95 % interval)
PUBLISHED: dict[str, dict[Key, tuple[float, float]]] = {
    row: {
        ("certificate", "bottom", group, "mse"): value
        for group, value in zip(("digits_0_4", "digits_5_9"), values, strict=True)
    }
    for row, values in _TABLE2.items()
}


def setting(config: Mapping[str, Any]) -> str:
    """Return eight hex digits for what a published number depends on: data set, model, routing and losses.

    Runs of one setting may differ in seed and trainer. `config`: nested, as saved.
    """
    data = config.get("dataset")
    parts = {key: config.get(key) for key in ("model", "routing", "losses")}
    parts["dataset"] = data.get("_target_") if isinstance(data, Mapping) else None
    return hashlib.sha256(json.dumps(_said(parts), sort_keys=True).encode()).hexdigest()[:8]


def _said(value: Any) -> Any:
    """Drop keys with empty values, so that new optional keys do not change an old configuration's setting."""
    if not isinstance(value, Mapping):
        return value
    silent = [key for key, inner in value.items() if inner is None or inner is False or inner in ([], {}, "all")]
    return {key: _said(inner) for key, inner in value.items() if key not in silent}
