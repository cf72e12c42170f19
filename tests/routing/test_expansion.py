"""Expand and contract: the round trip, the functions before and after, and every refusal leaves the model alone."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from gradroute.errors import UserError
from gradroute.models.autoencoder import Autoencoder
from gradroute.models.base import perceptron
from gradroute.models.transformer_layers import Gated
from gradroute.routing.expansion import Layer, contract, expand, removed


class Attention(nn.Module):
    """Self-attention that knows its number of heads, with a norm over what they say."""

    def __init__(self, features: int = 5, heads: int = 3, width: int = 2, norm: bool = False) -> None:
        super().__init__()
        self.heads, self.width = heads, width
        self.q, self.k, self.v = (nn.Linear(features, heads * width) for _ in range(3))
        self.norm = nn.RMSNorm(heads * width) if norm else nn.Identity()
        self.out = nn.Linear(heads * width, features)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (m(x).view(batch, length, self.heads, self.width).transpose(1, 2) for m in (self.q, self.k, self.v))
        said = nn.functional.scaled_dot_product_attention(q, k, v)
        mixed: torch.Tensor = self.out(self.norm(said.transpose(1, 2).reshape(batch, length, -1)))
        return mixed


class Recurrent(nn.Module):
    """A layer that reads its own units."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.out = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.out(torch.tanh(self.again(torch.tanh(self.first(x)))))
        return out


class Residual(nn.Module):
    """A stream that two layers add to and read."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.block, self.out = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        stream = self.read(x)
        out: torch.Tensor = self.out(stream + torch.relu(self.block(stream)))
        return out


def convolutional(positions: int = 9) -> nn.Sequential:
    """Two channels of 3 × 3 pixels to four units, batch norm, flattened to two outputs."""
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.PReLU(4, init=0.1), nn.Flatten()]
    model = nn.Sequential(*layers, nn.Linear(4 * positions, 2))
    for tensor in [*model.parameters(), *model.buffers()]:
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.1, 1)
    return model


HIDDEN = Layer(("linear0",), ("linear1",))
CHANNELS = Layer(("0",), ("4",), ("1", "2"))
HEADS = Layer(("q", "k", "v"), ("out",), width=2, count=("heads",))
LINE = Layer(("0",), ("2",), ("1",))
LOOP = Layer(("first", "again"), ("again", "out"))
Case = tuple[Callable[[], nn.Module], Layer, tuple[int, ...], int]
CASES: dict[str, Case] = {
    "mlp": (lambda: perceptron([3, 6, 2]), HIDDEN, (3,), 6),
    "conv": (convolutional, CHANNELS, (2, 3, 3), 4),
    "heads": (Attention, HEADS, (4, 5), 3),
    "recurrent": (Recurrent, LOOP, (3,), 4),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def snapshot(model: nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]:
    """The state and every plain attribute."""
    attributes = {
        name: {k: v for k, v in vars(module).items() if not k.startswith("_") and not isinstance(v, nn.Module)}
        for name, module in model.named_modules()
    }
    return {k: v.clone() for k, v in model.state_dict().items()}, copy.deepcopy(attributes)


def assert_same(model: nn.Module, before: tuple[dict[str, torch.Tensor], dict[str, dict[str, Any]]]) -> None:
    state, attributes = snapshot(model)
    assert list(state) == list(before[0])
    assert all(torch.equal(state[key], before[0][key]) for key in state)
    assert attributes == before[1]


@every_case
@settings(max_examples=8, deadline=None)
@given(n=st.integers(1, 3), init=st.sampled_from(["default", "silent"]))
def test_expand_then_contract_is_the_identity(case: Case, n: int, init: str) -> None:
    build, layer, _, old = case
    model = build()
    before = snapshot(model)
    new = expand(model, layer, n, init)
    assert new == tuple(range(old, old + n))
    contract(model, layer, new)
    assert_same(model, before)


@every_case
@pytest.mark.parametrize("training", [True, False])
def test_silent_units_leave_the_function_unchanged(case: Case, training: bool) -> None:
    build, layer, shape, _ = case
    model = build().double().train(training)
    x = torch.randn(5, *shape, dtype=torch.float64)
    expected = copy.deepcopy(model)(x)
    expand(model, layer, 2, "silent")
    torch.testing.assert_close(model(x), expected, rtol=1e-12, atol=1e-12)


@every_case
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_contracted_equals_zero_ablated(case: Case, data: st.DataObject) -> None:
    build, layer, shape, old = case
    units = data.draw(st.lists(st.integers(0, old - 1), min_size=1, max_size=old - 1, unique=True))
    model = build().double().eval()
    x = torch.randn(4, *shape, dtype=torch.float64)
    ablated = copy.deepcopy(model)
    for name in layer.consumers:  # zero where they are read: the consumer's input, in blocks of a unit

        def zero(module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> torch.Tensor:
            blocks = inputs[0].unflatten(-1, (old, -1)).clone()
            blocks[..., units, :] = 0
            flat: torch.Tensor = blocks.flatten(-2)
            return flat

        ablated.get_submodule(name).register_forward_pre_hook(zero)
    contract(model, layer, units)
    torch.testing.assert_close(model(x), ablated(x), rtol=1e-10, atol=1e-10)


@every_case
def test_forward_backward_copy_and_state_work_after(case: Case) -> None:
    build, layer, shape, _ = case
    model = build()
    expand(model, layer, 3)
    contract(model, layer, [0, 2])
    twin = copy.deepcopy(model)
    twin.load_state_dict(model.state_dict())
    assert list(model.state_dict()) == list(build().state_dict())
    x = torch.randn(4, *shape)
    assert torch.equal(twin.eval()(x), model.eval()(x))
    twin.train()(x).square().sum().backward()
    assert all(p.is_leaf and p.grad is not None and p.grad.shape == p.shape for p in twin.parameters())


def test_default_draws_keep_to_pytorchs_bounds_and_the_old_weights() -> None:
    model: Any = perceptron([4, 3, 2])
    old = copy.deepcopy(model)
    expand(model, HIDDEN, 200, generator=torch.Generator().manual_seed(1))
    first, last = model.linear0, model.linear1
    for new, bound in ((first.weight[3:], 4**-0.5), (first.bias[3:], 4**-0.5), (last.weight[:, 3:], 203**-0.5)):
        assert 0.9 * bound < new.abs().max() <= bound
        assert abs(new.mean()) < 0.2 * bound
    assert torch.equal(first.weight[:3], old.linear0.weight) and torch.equal(first.bias[:3], old.linear0.bias)
    assert torch.equal(last.weight[:, :3], old.linear1.weight) and torch.equal(last.bias, old.linear1.bias)
    again = copy.deepcopy(old)
    expand(again, HIDDEN, 200, generator=torch.Generator().manual_seed(1))
    assert_same(again, snapshot(model))


def test_convolutions_and_norms_start_as_pytorchs_own() -> None:
    model: Any = convolutional()
    conv, norm, slope, _, last = model
    expand(model, CHANNELS, 50)
    assert 0.9 * 18**-0.5 < conv.weight[4:].abs().max() <= 18**-0.5  # fan-in 2 channels × 3 × 3
    assert last.weight[:, 36:].abs().max() <= (54 * 9) ** -0.5
    for tensor, start in ((norm.weight, 1), (norm.bias, 0), (norm.running_mean, 0), (norm.running_var, 1)):
        assert (tensor[4:] == start).all()
    assert (slope.weight[4:] == 0.1).all()


def test_attributes_dtype_and_requires_grad_are_kept() -> None:
    model: Any = convolutional().double()
    conv, norm, slope, _, last = model
    conv.weight.requires_grad_(False)
    expand(model, CHANNELS, 2)
    assert (conv.out_channels, norm.num_features, slope.num_parameters, last.in_features) == (6, 6, 6, 54)
    assert all(p.dtype == torch.float64 for p in model.parameters())
    assert [p.requires_grad for p in model.parameters()] == [False] + [True] * 6 and last.out_features == 2
    assert "running_mean" in dict(norm.named_buffers()) and norm.num_batches_tracked.dim() == 0


def test_heads_are_counted_and_a_norm_over_the_units_follows() -> None:
    model = nn.Sequential(Attention(norm=True))
    layer = Layer(("0.q", "0.k", "0.v"), ("0.out",), ("0.norm",), width=2, count=("0.heads",))
    expand(model, layer, 2)
    attention: Any = model[0]
    assert (attention.heads, attention.width, attention.q.out_features, attention.out.in_features) == (5, 2, 10, 10)
    assert attention.norm.normalized_shape == (10,) and model(torch.randn(2, 3, 5)).shape == (2, 3, 5)
    contract(model, layer, [4, 0])
    assert attention.heads == 3 and attention.norm.normalized_shape == (6,)


class OwnNorm(nn.Module):
    """A norm that is not PyTorch's, with a weight per unit."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.full((units,), 2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("norm", "size"),
    [
        (nn.BatchNorm1d(4, affine=False, track_running_stats=False), {"num_features": 5}),
        (nn.LayerNorm(4, elementwise_affine=False), {"normalized_shape": (5,)}),
        (nn.LayerNorm(4, bias=False), {"normalized_shape": (5,)}),
        (OwnNorm(4), {}),
    ],
)
def test_norms_with_and_without_parameters_follow(norm: nn.Module, size: dict[str, object]) -> None:
    model = nn.Sequential(nn.Linear(3, 4), copy.deepcopy(norm), nn.Linear(4, 2))
    before = snapshot(model)
    expand(model, LINE, 1)
    assert size.items() <= vars(model[1]).items() and model(torch.randn(3, 3)).shape == (3, 2)
    assert all(torch.equal(p[4:], torch.ones(1)) for p in model[1].parameters())
    contract(model, LINE, [4])
    assert_same(model, before)


def test_silent_units_are_drawn_but_not_read() -> None:
    model: Any = perceptron([3, 4, 2])
    expand(model, HIDDEN, 2, "silent")
    assert (model.linear0.weight[4:] != 0).all() and (model.linear1.weight[:, 4:] == 0).all()


def test_a_module_with_two_names_is_one_module() -> None:
    model: Any = perceptron([3, 4, 2])
    model.alias = model.linear0
    expand(model, Layer(("alias",), ("linear1",)), 1)
    assert model.linear0 is model.alias and model.alias.out_features == 5


def sequence(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def tied() -> nn.Module:
    model = perceptron([4, 4, 4])
    model.get_submodule("linear1").weight = model.get_submodule("linear0").weight
    return model


def pruned() -> nn.Module:
    model = perceptron([3, 4, 2])
    model.get_submodule("linear0").register_buffer("weight_mask", torch.ones(4, 3))
    return model


MLP, ENDS = CASES["mlp"][0], Layer(("0",), ("1",))
linear = nn.Linear(4, 4)
UNFIT: dict[str, tuple[Callable[[], nn.Module], Layer, str]] = {
    "producer": (MLP, Layer(("linear00",), ("linear1",)), "unknown producer 'linear00'; did you mean linear0"),
    "consumer": (MLP, Layer(("linear0",), ("linaer1",)), "unknown consumer 'linaer1'; did you mean linear1"),
    "between": (MLP, Layer(("linear0",), ("linear1",), ("act",)), "unknown between 'act'; did you mean act0"),
    "itself": (MLP, Layer(("",), ("linear1",)), "unknown producer ''"),
    "attribute": (Attention, Layer(HEADS.producers, ("out",), (), 2, ("head",)), "holds 3 units.*did you mean heads"),
    "another count": (Attention, Layer(HEADS.producers, ("out",), (), 2, ("width",)), "holds 3 units.*'width'"),
    "type": (MLP, Layer(("act0",), ("linear1",)), "producer 'act0' is a ReLU: use Linear, Conv1d"),
    "transposed": (sequence(nn.ConvTranspose1d(4, 4, 1), linear), ENDS, "'0' is a ConvTranspose1d: use Linear"),
    "grouped": (sequence(nn.Conv1d(4, 4, 1, groups=2), linear), ENDS, "'0' is a Conv1d.*use a Conv with groups=1"),
    "group norm": (sequence(linear, nn.GroupNorm(1, 4), linear), LINE, "'1' is a GroupNorm.*norm per unit"),
    "attention": (sequence(nn.MultiheadAttention(4, 2), linear), ENDS, "embed_dim / num_heads.*q, k and v"),
    "inside": (sequence(linear, nn.MultiheadAttention(4, 2)), Layer(("0",), ("1.out_proj",)), "embed_dim / num_heads"),
    "lazy": (sequence(linear, nn.LazyLinear(4)), ENDS, "consumer '1' is a LazyLinear: use a plain one"),
    "extra tensor": (pruned, HIDDEN, "'linear0' is a Linear: use a plain one"),
    "tied": (tied, HIDDEN, "'linear0' is a Linear: it shares a tied parameter"),
    "wrong width": (Attention, Layer(HEADS.producers, ("out",), width=4), "multiple of width=4"),
    "producers differ": (Recurrent, Layer(("first", "out"), ("again",)), "'first': 4, 'out': 2.*use one"),
    "reads more": (sequence(nn.Linear(2, 4), nn.Linear(8, 2)), ENDS, "'1' reads 8 features, .* make 4; read 4"),
    "flattened": (lambda: convolutional(2)[:1].append(nn.Linear(9, 2)), ENDS, "'1' reads 9.*a multiple of it"),
    "no entries": (MLP, Layer(("linear0",), ("linear1",), ("act0",)), r"ReLU over \[\]; use a norm .* \(6,\)"),
    "positions": (
        sequence(linear, nn.LayerNorm((4, 3)), linear),
        LINE,
        r"LayerNorm over \[\(4, 3\)\]; use .* \(4,\)",
    ),
    "more": (sequence(linear, nn.LayerNorm(12), linear), LINE, r"LayerNorm over \[\(12,\)\]; use a norm"),
    "shared slope": (sequence(linear, nn.PReLU(), linear), LINE, r"PReLU over \[\(1,\)\]; use a norm"),
    "twice": (convolutional, Layer(("0",), ("4",), ("1", "1")), "named once"),
}


@pytest.mark.parametrize(("build", "layer", "message"), UNFIT.values(), ids=UNFIT)
def test_unfit_layers_are_refused_and_left_alone(build: Callable[[], nn.Module], layer: Layer, message: str) -> None:
    model = build()
    lazy = any(isinstance(module, nn.LazyLinear) for module in model.modules())
    before = None if lazy else snapshot(model)
    for change in (lambda: expand(model, layer, 1), lambda: contract(model, layer, [0])):
        with pytest.raises(UserError, match=message) as refused:
            change()
        assert "\n" not in str(refused.value)
        if before:
            assert_same(model, before)


@pytest.mark.parametrize("case", [CASES["conv"], CASES["heads"]], ids=["conv", "heads"])
def test_impossible_numbers_are_refused_and_the_model_left_alone(case: Case) -> None:
    build, layer, _, old = case
    model = build()
    before = snapshot(model)
    for units in ([], [old], [-1], [1, 1], range(old), [0.5], "0"):
        with pytest.raises(UserError, match=f"units=.*0 to {old - 1}, each once, and not all"):
            contract(model, layer, units)  # type: ignore[arg-type]
    for n in (0, -1, 1.5):
        with pytest.raises(UserError, match=f"n={n}; give a whole number of units, 1 or more"):
            expand(model, layer, n)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="unknown init of expand: 'silence'; did you mean silent"):
        expand(model, layer, 1, "silence")
    assert_same(model, before)


def test_silent_is_refused_over_a_norm_of_the_units() -> None:
    model = Attention(norm=True)
    before = snapshot(model)
    with pytest.raises(UserError, match=r"init=silent: between 'norm' is a RMSNorm.*use init=default"):
        expand(model, Layer(HEADS.producers, ("out",), ("norm",), 2, ("heads",)), 1, "silent")
    assert_same(model, before)


def test_a_layer_is_checked_when_it_is_made() -> None:
    for arguments in (("a", ("b",)), ((), ("b",)), (("a",), ()), (("a",), ("b",), (), 0)):
        with pytest.raises(UserError, match="give tuples of names"):
            Layer(*arguments)


def test_removed_takes_units_out_of_an_autoencoder() -> None:
    model: Any = Autoencoder([5], [7], 6).double()
    model.decoder.eval()
    modes = [module.training for module in model.modules()]
    before = snapshot(model)
    x = torch.randn(4, 5, dtype=torch.float64)
    smaller: Any = removed(model, "encoder", [0, 5, 2], x)
    assert_same(model, before)
    assert [m.training for m in smaller.modules()] == [m.training for m in model.modules()] == modes
    assert not any(module._forward_hooks for m in (model, smaller) for module in m.modules())
    assert smaller.encoder(x).shape == (4, 3)
    code = model.encoder(x)
    code[:, [0, 5, 2]] = 0
    torch.testing.assert_close(smaller(x), model.decoder(code), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("site", ["1", "2", "3"])
def test_removed_takes_channels_and_what_lies_between(site: str) -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.Flatten(), nn.Linear(16, 3)
    )
    smaller = removed(model, site, [1, 2], torch.randn(3, 2, 4, 4))
    assert [tuple(p.shape) for p in smaller.parameters()] == [(2, 2, 3, 3), (2,), (2,), (2,), (3, 8), (3,)]


class GateAround(nn.Module):
    """A gated MLP that runs its activation before the layer that it gates, as Llama's does."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 6), nn.Linear(3, 6), nn.Linear(6, 3)
        self.act: nn.Module = nn.SiLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        read: torch.Tensor = self.down(self.act(self.gate(x)) * self.up(x))
        return read


class GateBefore(GateAround):
    """The same with both layers before the activation's end, as in `gradroute.models.transformer`."""

    def __init__(self) -> None:
        super().__init__()
        self.act = Gated()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate = self.gate(x)
        read: torch.Tensor = self.down(self.act(self.up(x), gate))
        return read


@pytest.mark.parametrize("model", [GateAround(), GateBefore()], ids=["around", "before"])
@pytest.mark.parametrize("hidden", [6, 3])  # as many as it reads, too
def test_removed_takes_units_out_of_a_gated_mlp(model: Any, hidden: int) -> None:
    model = copy.deepcopy(model)
    if hidden < 6:
        contract(model, Layer(("gate", "up"), ("down",)), range(hidden, 6))
    x = torch.randn(4, 3)
    smaller: Any = removed(model, "act", [0, 2], x)
    kept = [unit for unit in range(hidden) if unit not in (0, 2)]
    for name in ("gate", "up"):
        assert torch.equal(smaller.get_submodule(name).weight, model.get_submodule(name).weight[kept])
    assert torch.equal(smaller.down.weight, model.down.weight[:, kept])
    hook = model.act.register_forward_hook(lambda m, i, out: out.index_fill(-1, torch.tensor([0, 2]), 0))
    torch.testing.assert_close(smaller(x), model(x))
    hook.remove()


@pytest.mark.parametrize(
    ("model", "site", "shape"),
    [
        (Residual(), "read", (3, 4)),  # two consumers
        (Residual(), "block", (3, 4)),  # adds to the stream
        (Residual(), "out", (3, 4)),  # nothing after
        (nn.Sequential(nn.Linear(4, 4), nn.Sigmoid(), nn.Linear(4, 4)), "0", (3, 4)),  # zero is not passed on as zero
        (nn.Sequential(nn.ReLU(), nn.Linear(4, 4)), "0", (3, 4)),  # nothing before
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 4)), "0", (3, 4)),  # a norm of the units
        (nn.Sequential(nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(12, 2)), "1", (2, 4, 3)),  # features, not channels
        (Attention(4, 2, 2), "q", (2, 3, 4)),  # read by no layer
        (nn.Sequential(*[nn.Linear(4, 4)] * 3), "0", (3, 4)),  # run three times
    ],
)
def test_removed_refuses_what_it_cannot_verify(model: nn.Module, site: str, shape: tuple[int, ...]) -> None:
    before = snapshot(model)
    with pytest.raises(UserError, match=f"site '{site}': .* could not be found; use contract with an explicit Layer"):
        removed(model, site, [1], torch.randn(shape))
    assert_same(model, before)
    assert not any(module._forward_hooks for module in model.modules())


def test_removed_refuses_unknown_sites_and_units_outside() -> None:
    model = Autoencoder([5], [7], 6)
    with pytest.raises(UserError, match="unknown site 'encodr'; did you mean encoder"):
        removed(model, "encodr", [1], torch.randn(2, 5))
    with pytest.raises(UserError, match=r"site 'encoder': units=\[6\]; name at least one unit from 0 to 5"):
        removed(model, "encoder", [6], torch.randn(2, 5))
