"""Candidate sites of a mask: the outputs inside a model whose units could be divided among groups."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradroute.config.auto import AutoConfig
from gradroute.errors import UserError, unknown
from gradroute.models.layer_parts import Layered
from gradroute.routing import Site
from gradroute.routing.hooks import hooked
from gradroute.routing.sites import call, undisturbed

CHANNELS = 1  # the axis of a convolution's units
NORMS = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


@dataclass(frozen=True)
class Candidate:
    """One or several sites with the same number of units, which are divided alike.

    numbers: how many numbers a data point, or a token, has at the sites.
    """

    sites: tuple[Site, ...]
    units: int
    numbers: int

    @property
    def name(self) -> str:
        """The site's name; of several, the first and the last."""
        names = [site.name for site in self.sites]
        return names[0] if len(names) == 1 else f"{names[0]} … {names[-1]} ({len(names)})"


def candidates(model: nn.Module, example: Any, auto: AutoConfig, groups: int) -> list[Candidate]:
    """Return the candidates of a model, those that `auto.sites` names or all.

    Of a language model that knows its layers these are the MLP units of each layer, of either half of the layers and of
    all; of another model the outputs of all modules with weights except norms, each once, and without the model's own
    output.

    Raises: UserError if a site that is named does not exist, or if there is no site with a unit for each of `groups`.
    """
    shown = outputs(model, example)
    if auto.sites:
        found = [_named(name, shown, model, auto) for name in auto.sites]
    elif isinstance(model, Layered):
        found = _by_layer(model)
    else:
        found = _by_module(model, shown, auto)
    few = [one for one in found if one.units < groups]
    if auto.sites and few:
        fault = f"site '{few[0].name}' has {few[0].units} units for {groups} groups"
        raise UserError(f"{auto.key}.sites: {fault}; give a wider site")
    found = [one for one in found if one.units >= groups]
    if not found:
        kind = type(model).__name__
        right = "use a model with a hidden layer"
        raise UserError(f"{auto.key}: {kind} has no site whose units {groups} groups could share; {right}")
    return found


def outputs(model: nn.Module, example: Any) -> dict[str, torch.Tensor]:
    """Return the tensors of floats that modules of a model return for an example, by name, in the order of the pass.

    Left out are the model itself, outputs that are the model's, and modules that are called several times.
    """
    shown: dict[str, list[torch.Tensor]] = {}

    def note(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor) and output.is_floating_point() and output.dim() > 1:
                shown.setdefault(name, []).append(output)

        return hook

    names = [name for name, _ in model.named_modules() if name]
    with undisturbed(model), torch.no_grad(), hooked(model, {name: note(name) for name in names}, kept=False):
        last = call(model, example)
    ends = {tensor.data_ptr() for tensor in tensors(last)}
    return {name: each[0] for name, each in shown.items() if len(each) == 1 and each[0].data_ptr() not in ends}


def tensors(output: Any) -> list[torch.Tensor]:
    """Return the tensors that a model returns."""
    parts = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple | list) else [output]
    return [part for part in parts if isinstance(part, torch.Tensor)]


def _axis(activation: torch.Tensor, auto: AutoConfig) -> int:
    given = auto.axis
    if given is None:
        return CHANNELS if activation.dim() > 3 else -1
    if not -activation.dim() <= given < activation.dim() or given in (0, -activation.dim()):
        right = f"an axis of units of an output of shape {tuple(activation.shape)}, not its first"
        raise UserError(f"{auto.key}.axis={given}: must be {right}")
    return given


def _candidate(name: str, activation: torch.Tensor, auto: AutoConfig) -> Candidate:
    axis = _axis(activation, auto)
    return Candidate((Site(name, axis),), activation.shape[axis], activation[0].numel())


def _named(name: str, shown: dict[str, torch.Tensor], model: nn.Module, auto: AutoConfig) -> Candidate:
    modules = [module for module, _ in model.named_modules() if module]
    if name not in modules:
        raise unknown(f"site of {auto.key}.sites:", name, modules)
    if name not in shown:
        fault = f"site '{name}' is reached by no forward pass, returns no activations, or is the model's output"
        raise UserError(f"{auto.key}.sites: {fault}; name another module")
    return _candidate(name, shown[name], auto)


def _by_layer(model: Layered) -> list[Candidate]:
    places = [model.place("mlp", layer) for layer in range(model.layer_count)]
    half = (len(places) + 1) // 2
    chosen: list[Sequence[int]] = [[layer] for layer in range(len(places))]
    chosen += [range(half), range(half, len(places)), range(len(places))] if len(places) > 1 else []
    found = []
    for layers in chosen:
        units = [places[layer].units for layer in layers]
        sites = tuple(Site(places[layer].module, output=places[layer].output) for layer in layers)
        found += [Candidate(sites, units[0], sum(units))] if len({*units}) == 1 else []
    return list(dict.fromkeys(found))


def _by_module(model: nn.Module, shown: dict[str, torch.Tensor], auto: AutoConfig) -> list[Candidate]:
    """Return a candidate for each distinct output; a container stands for its last part, which returns the same."""
    found: dict[int, Candidate] = {}
    for name, activation in shown.items():
        module = model.get_submodule(name)
        if isinstance(module, NORMS) or next(module.parameters(), None) is None:
            continue
        one = _candidate(name, activation, auto)
        before = found.get(id(activation))
        if before is None or len(name) < len(before.sites[0].module):
            found[id(activation)] = one
    return list(found.values())
