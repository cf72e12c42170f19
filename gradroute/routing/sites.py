"""Sites: the places in a model where a mask can be set, and what a forward pass shows of them."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError
from gradroute.routing.hooks import hooked


@dataclass(frozen=True)
class Site:
    """One output of the module called `module`; its units lie on `axis`, its data points on `batch_axis`.

    output: which output of a module that returns several: an index of a tuple, or a key of a mapping.
    """

    module: str
    axis: int = -1
    output: int | str | None = None
    batch_axis: int = 0

    @property
    def name(self) -> str:
        """The site's name in results: `encoder`, `lstm[0]` for one of several outputs, `conv@1` for an axis."""
        name = self.module if self.output is None else f"{self.module}[{self.output}]"
        return name if self.axis == -1 else f"{name}@{self.axis}"

    def read(self, output: Any) -> torch.Tensor:
        """Return the site's activation from its module's output. Raises: UserError if there is none."""
        if self._alone(output):
            output = output[0]
        elif isinstance(output, Mapping):
            if self.output not in output:
                what, right = f"a {type(output).__name__}", " or ".join(f"output={key}" for key in output)
                raise UserError(f"site '{self.module}', output={self.output}: the module returns {what}; give {right}")
            output = output[self.output]
        elif isinstance(output, tuple | list):
            if not isinstance(self.output, int) or not -len(output) <= self.output < len(output):
                right = f"output=0 to {len(output) - 1}"
                what = f"the module returns {len(output)} values; give {right}"
                raise UserError(f"site '{self.module}', output={self.output}: {what}")
            output = output[self.output]
        elif self.output is not None:
            what = f"the module returns one {type(output).__name__}; leave output= out"
            raise UserError(f"site '{self.module}', output={self.output}: {what}")
        if not isinstance(output, torch.Tensor) or not output.is_floating_point() or output.dim() < 1:
            raise UserError(f"site '{self.name}': its output is a {type(output).__name__}, not a tensor of floats")
        return output

    def replace(self, output: Any, activation: torch.Tensor) -> Any:
        """Return the module's output with `activation` in the site's place."""
        if self._alone(output):
            return (activation,)
        if self.output is None:
            return activation
        if isinstance(output, Mapping):
            changed: Any = copy.copy(output)  # of the same type, such as transformers' outputs
            changed[self.output] = activation
            return changed
        assert isinstance(self.output, int)  # or `read` would have raised
        parts = list(output)
        parts[self.output] = activation
        return type(output)(*parts) if hasattr(output, "_fields") else type(output)(parts)

    def _alone(self, output: Any) -> bool:
        """Return whether the output is the only one in a tuple, as that of some layers of transformers 4 is."""
        return self.output is None and type(output) is tuple and len(output) == 1

    def units_last(self, activation: torch.Tensor) -> torch.Tensor:
        """Return a view with the data points on the first axis and the units on the last: `(batch, …, units)`."""
        batch, unit = self.batch_axis % activation.dim(), self.axis % activation.dim()
        return activation.movedim((batch, unit), (0, -1)) if activation.dim() > 1 else activation

    def spread(self, rows: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Reshape weights `(units,)`, `(batch, units)` or `(batch, tokens, units)` to broadcast to `shape`.

        Tokens are the first axis that is neither the batch's nor the units'. Raises: UserError if the sizes disagree.
        """
        batch, unit = self.batch_axis % len(shape), self.axis % len(shape)
        tokens = [axis for axis in range(len(shape)) if axis not in (batch, unit)][:1]
        axes = {1: [unit], 2: [batch, unit], 3: [batch, *tokens, unit]}[rows.dim()]
        if len(axes) != rows.dim() or any(shape[axis] != size for axis, size in zip(axes, rows.shape, strict=True)):
            given = f"a membership of shape {tuple(rows.shape[:-1])}"
            right = "give (batch,), or (batch, tokens) for a site with tokens"
            raise UserError(f"site '{self.name}' has shape {tuple(shape)}: {given} does not fit; {right}")
        sizes = [1] * len(shape)
        for axis, size in zip(axes, rows.shape, strict=True):
            sizes[axis] = size
        return rows.permute(sorted(range(len(axes)), key=axes.__getitem__)).reshape(sizes)


def by_module(sites: Iterable[Site]) -> dict[str, list[Site]]:
    """Return the sites at each module, by its name."""
    modules: dict[str, list[Site]] = {}
    for site in dict.fromkeys(sites):
        modules.setdefault(site.module, []).append(site)
    return modules


@contextmanager
def observed(
    model: nn.Module, sites: Iterable[Site], copies: bool = False
) -> Iterator[dict[str, torch.Tensor]]:  # fmt: skip
    """Yield the activations at `sites`, by site name, of the last forward pass inside the block.

    copies: store detached copies, which stay the same if the next module changes the activation in place.
    """
    activations: dict[str, torch.Tensor] = {}

    def note(sites: list[Site]) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            seen = {site.name: site.read(output) for site in sites}
            activations.update({name: a.detach().clone() for name, a in seen.items()} if copies else seen)

        return hook

    with hooked(model, {module: note(there) for module, there in by_module(sites).items()}, kept=False):
        yield activations


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Use evaluation mode inside the block, and leave modes, buffers and random generators as they were."""
    modes = {module: module.training for module in model.modules()}
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    model.eval()
    try:
        with torch.random.fork_rng(list(devices)), torch.enable_grad():  # no_grad has fast paths that skip some modules
            yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def call(model: nn.Module, example: Any) -> Any:
    """Call `model` on one input, on several as a tuple, or on keyword arguments as a mapping."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple | list) else model(example)


@dataclass(frozen=True)
class Found:
    """What a forward pass shows of a site: its activation, and the Linear or Conv whose rows make its units.

    changed: whether a later module changes the activation in place, as an in-place ReLU does.
    """

    activation: torch.Tensor
    producer: str | None
    changed: bool = False


def survey(model: nn.Module, sites: Iterable[Site], example: Any) -> dict[str, Found]:
    """Return what a forward pass of `example` shows of every site, by site name.

    The producer is the last Linear, Conv or attention output that ran before the site's module returned; None if its
    rows are not the site's units. Raises: UserError for a site that the pass does not reach.
    """
    sites, ran, found = list(sites), list[str](), dict[str, Found]()
    versions: dict[str, tuple[torch.Tensor, int]] = {}
    modules = dict(model.named_modules())
    layers = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.MultiheadAttention)
    here = by_module(sites)

    def note(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(module, layers):
                ran.append(f"{name}.out_proj" if isinstance(module, nn.MultiheadAttention) else name)
            for site in here.get(name, []):
                shown = site.read(output)
                versions[site.name] = (shown, shown._version)
                activation = shown.detach()
                if not -activation.dim() <= site.axis < activation.dim():
                    raise UserError(f"site '{site.name}' of shape {tuple(activation.shape)} has no axis {site.axis}")
                rows = len(model.get_submodule(ran[-1]).weight) if ran else 0  # type: ignore[arg-type]
                found[site.name] = Found(activation, ran[-1] if rows == activation.shape[site.axis] else None)

        return hook

    wanted = [name for name, module in modules.items() if name in here or isinstance(module, layers)]
    with undisturbed(model), hooked(model, {name: note(name) for name in [*here, *wanted]}, kept=False):
        call(model, example)
    for site in sites:
        if site.name not in found:
            raise UserError(f"site '{site.name}' is not reached in the forward pass of the example")
        shown, version = versions[site.name]
        found[site.name] = replace(found[site.name], changed=shown._version != version)
    return found
