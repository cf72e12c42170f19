"""Plots of arrays alone."""

from types import SimpleNamespace
from typing import Any

import numpy as np

from gradroute.reporting.plots_common import mask


def test_equal_masks_of_several_sites_are_drawn_once() -> None:
    one, other = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[0.0, 1.0], [1.0, 0.0]])
    sites = {"a.0": one, "b.0": other, "a.1": one, "a.2": one, "wide": one.repeat(2, 1)}
    run: Any = SimpleNamespace(
        arrays={f"mask/{site}": weights for site, weights in sites.items()} | {"encoding/a": one},
        names={"groups": ["first", "second"]},
    )
    drawn = {axes.get_xlabel(): axes.images[0].get_array() for axes in mask(run).axes if axes.images}
    expected = {"unit of a.0 … a.2 (3 sites)": one, "unit of b.0": other, "unit of wide": sites["wide"]}
    assert drawn.keys() == expected.keys()
    for label, weights in expected.items():
        np.testing.assert_array_equal(drawn[label], weights)
