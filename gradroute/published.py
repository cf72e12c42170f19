"""What the papers report, to stand beside what we measure."""

# GR (arXiv 2410.04332) table 2: bottom-half certificate, test set, mean of 20 runs and 95 % interval. The paper calls
# the column MAE; the numbers are mean squared errors.
_TABLE2 = {
    "row1": ((0.32, 0.02), (0.08, 0.00)),
    "row2": ((0.33, 0.02), (0.07, 0.00)),
    "row3": ((0.28, 0.02), (0.11, 0.01)),
    "row4": ((0.32, 0.02), (0.32, 0.01)),
    "row5": ((0.09, 0.01), (0.08, 0.00)),
    "row6": ((0.23, 0.02), (0.13, 0.01)),
    "row7": ((0.27, 0.02), (0.11, 0.00)),
    "row8": ((0.08, 0.01), (0.08, 0.00)),
    "row9": ((0.13, 0.01), (0.13, 0.01)),
    "row10": ((0.08, 0.01), (0.09, 0.00)),
}
TOLERANCE = 0.02  # a mean agrees within this and its own half-width
Key = tuple[str, str, str, str]  # head, region, group, metric

# experiment name to measurement to (value, half-width of the 95 % interval)
PUBLISHED: dict[str, dict[Key, tuple[float, float]]] = {
    f"mnist_table2_{row}": {
        ("certificate", "bottom", group, "mse"): value
        for group, value in zip(("digits_0_4", "digits_5_9"), values, strict=True)
    }
    for row, values in _TABLE2.items()
}
PUBLISHED["mnist_split"] = PUBLISHED["mnist_table2_row1"]
