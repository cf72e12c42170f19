"""Memberships: whole numbers of every type, NumPy arrays and lists; anything else is named in one line."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gradroute import Monitor, Region, Router, UserError

X = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
GROUP = [0, 1, 1, 0]
SHARES = [[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]
WHOLE = ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
FLOATS = ["float16", "float32", "float64"]


def routed(membership: Any) -> torch.Tensor:
    """The first layer's gradient, and that a monitor can count by the membership."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))
    regions = {"left": Region("0", "0:3"), "right": Region("0", "3:6")}
    router = Router(model, regions, ["a", "b"], {"a": {"left": 0.0}, "b": {"right": -0.5}}, X[:1])
    monitor = Monitor(router.regions, router.groups)
    with router.route(membership, monitor):
        model(X).square().sum().backward()
    gradient = next(model.parameters()).grad
    assert gradient is not None and sum(norm.points for norm in monitor.norms()) == 8
    return gradient


@pytest.mark.parametrize("kind", WHOLE)
def test_every_whole_number_type_is_a_membership(kind: str) -> None:
    expected = routed(torch.tensor(GROUP))
    array = np.array(GROUP, dtype=kind)
    given = [torch.tensor(GROUP).to(getattr(torch, kind)), array, array[::-1].copy()[::-1]]
    given += [array.astype(array.dtype.newbyteorder(">")), list(array)]
    array.flags.writeable = False
    for membership in [*given, array]:
        assert torch.equal(routed(membership), expected)
    for one in (np.array(1, dtype=kind), array[1], torch.tensor(1).to(getattr(torch, kind))):
        assert torch.equal(routed(one), routed("b"))
    if kind.startswith("int"):
        default = array - array - 1
        assert torch.equal(routed(default), routed(-1)) and not torch.equal(routed(default), expected)


@pytest.mark.parametrize("kind", FLOATS)
def test_every_float_type_is_a_membership(kind: str) -> None:
    expected = routed(torch.tensor(SHARES))
    for membership in (torch.tensor(SHARES).to(getattr(torch, kind)), np.array(SHARES, dtype=kind), SHARES):
        assert torch.equal(routed(membership), expected)
    assert torch.equal(routed(torch.tensor(SHARES, dtype=torch.bfloat16)), expected)


def test_lists_and_tuples_are_memberships() -> None:
    expected = routed(torch.tensor([-1, 1, 1, 0]))
    for membership in ([-1, 1, 1, 0], (-1, 1, 1, 0), [torch.tensor(-1), 1, np.int8(1), 0]):
        assert torch.equal(routed(membership), expected)
    assert torch.equal(routed(1), routed("b"))


REFUSED: dict[str, tuple[Any, str]] = {
    "none": (None, "membership is a NoneType"),
    "names": (["a", "b", "b", "a"], "membership is a list"),
    "bools": ([True, False, True, True], "membership of torch.bool and shape (4,)"),
    "numpy bools": (np.array([True] * 4), "membership of torch.bool and shape (4,)"),
    "complex": (torch.zeros(4, 2, dtype=torch.complex64), "membership of torch.complex64 and shape (4, 2)"),
    "objects": (np.array([0, None, 1, 1], dtype=object), "membership is a ndarray"),
    "dates": (np.array(["2026-01-01"] * 4, dtype="datetime64[D]"), "membership is a ndarray"),
    "strings": (np.array(["a"] * 4), "membership is a ndarray"),
    "ragged": ([[0], [1, 1], [0], [0]], "membership is a list"),
    "mapping": ({"a": 1}, "membership is a dict"),
    "set": ({0, 1}, "membership is a set"),
    "huge": ([2**70, 0, 0, 0], "membership is a list"),
    "wraps to -1": (np.array([2**64 - 1, 0, 0, 0], dtype=np.uint64), "values out of range"),
    "wraps in torch": (torch.tensor([255, 0, 0, 0], dtype=torch.uint8), "values out of range"),
    "sparse": (torch.tensor(GROUP).to_sparse(), "layout torch.sparse_coo"),
    "one float": (0.5, "membership of torch.float64 and shape ()"),
    "float8": (torch.zeros(4, 2).to(torch.float8_e4m3fn), "membership of torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_anything_else_is_named_in_one_line(name: str) -> None:
    membership, message = REFUSED[name]
    with pytest.raises(UserError) as error:
        routed(membership)
    text = str(error.value)
    assert message in text and "\n" not in text and "give whole numbers of the 2 groups" in text
