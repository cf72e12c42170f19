"""Expand and contract: add units to named layers of a model, or remove them from its structure.

The first and last steps of Expand, Route, Ablate (GR section 4.2.2; Cloud et al. 2024, arXiv 2410.04332). Everything is
checked before anything is changed: a UserError leaves the model as it was.
"""

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.lazy import LazyModuleMixin
from torch.utils._pytree import tree_leaves

from gradroute.errors import UserError, unknown
from gradroute.routing.hooks import hooked

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
FILL = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1, "num_batches_tracked": 0}  # a norm's new entries
OUT = ("out_features", "out_channels", "num_features", "num_parameters", "normalized_shape")
INTO = ("in_features", "in_channels")


@dataclass(frozen=True)
class Layer:
    """The modules that make, pass on and read a layer's units, by dotted name."""

    producers: tuple[str, ...]  # Linear or Conv1d/2d/3d whose output features are the units; for attention q, k and v
    consumers: tuple[str, ...]  # Linear or Conv that read them; a Linear may read flattened channels
    between: tuple[str, ...] = ()  # with one entry per unit: BatchNorm, LayerNorm or RMSNorm over the units, PReLU
    width: int = 1  # features per unit: a head's width, 1 for neurons and channels
    count: tuple[str, ...] = ()  # dotted attributes that hold the number of units: "blocks.0.attention.heads"

    def __post_init__(self) -> None:
        roles = (self.producers, self.consumers, self.between, self.count)
        if any(isinstance(names, str) for names in roles) or not all(roles[:2]) or self.width < 1:
            raise UserError(
                f"{self}: give tuples of names, at least one producer and consumer, and a width of 1 or more"
            )


@dataclass
class _Part:
    """A module to resize, and the entries per unit on axis 0 (`out`) and axis 1 (`into`) of its tensors."""

    module: nn.Module
    out: int = 0
    into: int = 0

    def grown(self, n: int, silent: bool, generator: torch.Generator | None) -> Iterator[torch.Tensor]:
        """Yield the tensors with `n` more units: created at their new size, then the old entries copied in."""
        for name, old in _own(self.module).items():
            shape = [size + n * more for size, more in zip(old.shape, (self.out, self.into, 0, 0, 0), strict=False)]
            if isinstance(self.module, LAYERS):
                weight = self.module.weight
                bound = 1 / math.sqrt((weight.shape[1] + n * self.into) * weight[0, 0].numel())
                new = torch.empty(shape, dtype=old.dtype, device=generator.device if generator else old.device)
                new = new.uniform_(-bound, bound, generator=generator).to(old.device)
            else:
                new = old.new_full(shape, self.module.init if isinstance(self.module, nn.PReLU) else FILL[name])
            if silent and self.into and old.dim() > 1:
                new[:, old.shape[1] :] = 0
            new[tuple(slice(size) for size in old.shape)] = old
            yield new

    def kept(self, keep: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield the tensors with only the units where `keep`, `(units,)` bool, is true."""
        for tensor in _own(self.module).values():
            rows = tensor[keep.repeat_interleave(self.out)] if self.out and tensor.dim() else tensor
            yield rows[:, keep.repeat_interleave(self.into)] if self.into and tensor.dim() > 1 else rows


@torch.no_grad()
def expand(
    model: nn.Module, layer: Layer, n: int, init: str = "default", generator: torch.Generator | None = None
) -> tuple[int, ...]:
    """Append `n` units to `layer` in place and return their indices; existing weights stay the same to the bit.

    Parameters that grow become new objects without gradients: create the optimizer after this call.

    Args:
        init: `default` draws new rows, columns and biases as PyTorch does for a layer of the new size, uniform within
            `1 / sqrt(fan_in)`; norms get weight 1, bias 0, mean 0, variance 1, PReLU its initial slope. `silent` is the
            same with the consumers' new columns 0, so that the model's function is unchanged.
        generator: source of the draws, PyTorch's own if None.

    Raises: UserError, before any change, for `n` below 1, an unknown `init` or name, modules that are not supported,
        sizes that disagree, tied parameters, or `silent` over a norm whose statistics mix units.
    """
    if not isinstance(n, int) or n < 1:
        raise UserError(f"expand: n={n}; give a whole number of units, 1 or more")
    if init not in ("default", "silent"):
        raise unknown("init of expand:", init, ["default", "silent"])
    old, parts, counts = _plan(model, layer, silent=init == "silent")
    _commit(old + n, counts, [(part, list(part.grown(n, init == "silent", generator))) for part in parts])
    return tuple(range(old, old + n))


@torch.no_grad()
def contract(model: nn.Module, layer: Layer, units: Sequence[int]) -> None:
    """Remove `units` of `layer` in place; the others keep their order. Create the optimizer after this call.

    The model then computes what it did with those units at 0 where they are read; norms are over the units left.

    Raises: UserError, before any change, for units out of range, repeated, none or all, and where `expand` does.
    """
    old, parts, counts = _plan(model, layer)
    keep = torch.ones(old, dtype=torch.bool)
    keep[_checked_units(units, old, f"producer '{layer.producers[0]}'")] = False
    _commit(int(keep.sum()), counts, [(part, list(part.kept(keep))) for part in parts])


@torch.no_grad()
def removed(model: nn.Module, site: str, units: Sequence[int], example: torch.Tensor) -> nn.Module:
    """Return a deep copy of `model` without `units` of `site`'s output, `(…, units)` or for a Conv `(batch, units, …)`.

    The layers found are the last that runs before the site returns, and the first after it; a gated MLP has two
    producers, both before or one on either side. On `example`, in eval mode, the copy must compute what the model does
    with those activations at 0 (rtol 1e-4, atol 1e-5); choose one that activates them. `model` itself is never run.

    Raises: UserError for an unknown site, units out of range, or if the layers cannot be found this way.
    """
    probe = copy.deepcopy(model).eval()
    modules = dict(probe.named_modules(remove_duplicate=False))
    if not site or site not in modules:
        raise unknown("site", site, filter(None, modules))
    unclear = UserError(f"site '{site}': the layers around it could not be found; use contract with an explicit Layer")
    at, names, ran = modules[site], {module: name for name, module in modules.items()}, list[nn.Module]()
    noted = {names[module] for module in {at, *(module for module in names if not [*module.children()])}}
    with hooked(probe, dict.fromkeys(noted, lambda module, inputs, output: ran.append(module))):
        probe(example)  # a hook that stays would keep the copy alive
    end = ran.index(at) if ran.count(at) == 1 else -1
    before = [i for i, module in enumerate(ran) if isinstance(module, LAYERS) and i <= end]
    after = [i for i, module in enumerate(ran) if isinstance(module, LAYERS) and i > end]
    if not before or not after:
        raise unclear
    made, fault = ran[before[-1]], None
    choices = [(before[-1:], after[0]), (before[-2:], after[0]), *(([before[-1], after[0]], i) for i in after[1:2])]

    def zeroed(module: nn.Module, inputs: Any, output: Any) -> torch.Tensor:
        axis = -1 if isinstance(made, nn.Linear) else 1
        if not isinstance(output, torch.Tensor) or output.dim() < 2 or output.shape[axis] != len(_own(made)["weight"]):
            raise unclear
        gone = _checked_units(units, output.shape[axis], f"site '{site}'")
        return output.index_fill(axis, torch.tensor(gone, device=output.device), 0)

    with hooked(probe, {site: zeroed}):
        expected = probe(example)
    for makers, reader in choices:
        passed = [ran[i] for i in range(makers[0], reader) if i not in makers and _sizes(ran[i]) - {(1,)}]
        producers, between = (tuple(names[module] for module in m) for m in ([ran[i] for i in makers], passed))
        smaller = copy.deepcopy(model)
        try:
            contract(smaller, Layer(producers, (names[ran[reader]],), between), units)
            pairs = zip(tree_leaves(copy.deepcopy(smaller).eval()(example)), tree_leaves(expected), strict=True)
            if all(a is b or (a.shape == b.shape and torch.allclose(a, b, 1e-4, 1e-5)) for a, b in pairs):
                return smaller  # torch.testing compares like this, too, but its import takes a second
        except Exception as error:  # any error of a model whose parts do not fit
            fault = error
    raise unclear from fault


def _own(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict([*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)])


def _sizes(module: nn.Module) -> set[tuple[int, ...]]:
    """Return the shapes of the module's tensors, except scalars, and the output size that it declares."""
    stated = [getattr(module, name) for name in OUT if name in vars(module)]
    shapes = [(size,) if isinstance(size, int) else size for size in stated]
    return {tuple(shape) for shape in [*shapes, *(tensor.shape for tensor in _own(module).values())] if shape}


def _checked_units(units: Sequence[int], total: int, where: str) -> list[int]:
    gone = list(units)
    if not 0 < len(set(gone)) == len(gone) < total or not set(gone) <= set(range(total)):
        raise UserError(f"{where}: units={gone}; name at least one unit from 0 to {total - 1}, each once, and not all")
    return gone


def _checked_module(modules: dict[str, nn.Module], role: str, name: str) -> nn.Module:
    if not name or name not in modules:
        raise unknown(role, name, filter(None, modules))
    module, every = modules[name], set(modules.values())
    own, layer = _own(module), isinstance(module, LAYERS)
    attention = {part for m in every if isinstance(m, nn.MultiheadAttention) for part in m.modules()}
    uses = Counter(id(tensor) for m in every for tensor in _own(m).values())
    grouped = isinstance(module, nn.GroupNorm) or (layer and getattr(module, "groups", 1) > 1)
    plain = own.keys() <= FILL.keys() and not [*module.children()] and not isinstance(module, LazyModuleMixin)
    faults = {
        "its heads are embed_dim / num_heads wide; write attention with q, k and v as Linear": module in attention,
        "it has units in groups; use a Conv with groups=1, or a norm per unit": grouped,
        "use Linear, Conv1d, Conv2d or Conv3d": role != "between" and not layer,
        f"use a plain one, with no tensors but {', '.join(FILL)}": not plain,
        "it shares a tied parameter; give each module its own": any(uses[id(tensor)] > 1 for tensor in own.values()),
    }
    for fault in [fault for fault, present in faults.items() if present]:
        raise UserError(f"{role} '{name}' is a {type(module).__name__}: {fault}")
    return module


def _plan(model: nn.Module, layer: Layer, silent: bool = False) -> tuple[int, list[_Part], list[tuple[nn.Module, str]]]:
    """Check everything; return the number of units, the modules to resize, and the attributes that count units."""
    modules = dict(model.named_modules(remove_duplicate=False))
    producers = {name: _checked_module(modules, "producer", name) for name in layer.producers}
    features = {name: len(_own(module)["weight"]) for name, module in producers.items()}
    total, units = min(features.values()), min(features.values()) // layer.width
    if max(features.values()) != total or total % layer.width:
        raise UserError(f"producers make {features} features; use one multiple of width={layer.width} for all")
    parts = {module: _Part(module, out=layer.width) for module in producers.values()}
    flat = not any(isinstance(module, nn.Linear) for module in parts)
    for name in layer.consumers:
        module = _checked_module(modules, "consumer", name)
        size, several = _own(module)["weight"].shape[1], flat and isinstance(module, nn.Linear)
        if size != total and (size % total or not several):
            right = f"{total} or, flattened, a multiple of it" if several else total
            raise UserError(f"consumer '{name}' reads {size} features, the producers make {total}; read {right}")
        parts.setdefault(module, _Part(module)).into = size // units
    for name in layer.between:
        module = _checked_module(modules, "between", name)
        what, sizes = f"between '{name}' is a {type(module).__name__}", _sizes(module)
        if module in parts or sizes not in ({(units,)}, {(total,)}):
            raise UserError(f"{what} over {sorted(sizes)}; use a norm or PReLU over ({total},), named once")
        if silent and not isinstance(module, _NormBase | nn.PReLU):
            raise UserError(f"init=silent: {what}, and new units change its statistics; use init=default")
        parts[module] = _Part(module, out=min(sizes)[0] // units)
    same = [(n, m, key) for n, m in modules.items() for key, v in vars(m).items() if type(v) is int and v == units]
    held = {f"{name}.{key}".lstrip("."): (module, key) for name, module, key in same}
    for path in layer.count:
        if path not in held:
            raise unknown(f"count, an attribute that holds {units} units:", path, held)
    return units, list(parts.values()), [held[path] for path in layer.count]


def _commit(units: int, counts: list[tuple[nn.Module, str]], changes: list[tuple[_Part, list[torch.Tensor]]]) -> None:
    for part, tensors in changes:
        for (name, old), new in zip(_own(part.module).items(), tensors, strict=True):
            if new.shape != old.shape:
                parameter = isinstance(old, nn.Parameter)
                setattr(part.module, name, nn.Parameter(new, old.requires_grad) if parameter else new)
        for size, names in ((units * part.out, OUT), (units * part.into, INTO)):
            for name in [name for name in names if size and name in vars(part.module)]:
                setattr(part.module, name, size if isinstance(vars(part.module)[name], int) else (size,))
    for module, attribute in counts:
        setattr(module, attribute, units)
