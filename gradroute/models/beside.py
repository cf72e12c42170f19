"""Modules beside the MLPs of the transformer: add, find, leave out, and choose which of them a pass uses."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gradroute.errors import UserError, unknown
from gradroute.models.transformer_layers import MLP, Beside, TransformerConfig
from gradroute.routing import ParameterRegion, Region
from gradroute.routing.ablation import Ablation, without
from gradroute.routing.regions import matching

CORE = "core"  # what is in every profile


def add_beside(model: nn.Module, config: TransformerConfig, modules: Mapping[str, int]) -> None:
    """Add modules to every layer, initialised like the MLPs. Raises: UserError for a name that torch cannot take."""
    deviation = 0.02 / (2 * config.layers) ** 0.5
    for mlp in [module for module in model.modules() if isinstance(module, MLP)]:
        for name, units in modules.items():
            if not name.isidentifier() or hasattr(nn.ModuleDict(), name) or name == CORE:
                raise UserError(f"model.modules: '{name}' cannot name a module; use another word")
            made = Beside(config, units)
            nn.init.normal_(made.up.weight, std=0.02)
            nn.init.normal_(made.down.weight, std=deviation)
            for layer in (made.up, made.down):
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
            mlp.beside[name] = made


def beside(model: nn.Module) -> dict[str, dict[str, Beside]]:
    """Return a model's modules: by name, and by their names in the model."""
    found: dict[str, dict[str, Beside]] = {}
    for path, module in model.named_modules():
        if isinstance(module, Beside):
            found.setdefault(path.rpartition(".")[2], {})[path] = module
    return found


def beside_region(model: nn.Module, name: str, where: str) -> Region:
    """Return the region of a module's outputs in all layers. Raises: UserError for an unknown one."""
    known = beside(model)
    if name not in known:
        raise unknown(f"value of {where}.module, of model.modules:", name, known)
    return Region(list(known[name]))


def beside_parameters(model: nn.Module, name: str) -> ParameterRegion:
    """Return the region of a module's parameters in all layers."""
    paths = beside(model)[name]
    return ParameterRegion({f"{path}.{own}": None for path, m in paths.items() for own, _ in m.named_parameters()})


def outside_modules(
    model: nn.Module, patterns: Mapping[str, object], modules: Sequence[str], what: str
) -> dict[str, object]:
    """Return the parameters that match patterns, without those of some modules. Raises: UserError for no match."""
    gone = {parameter for name in modules for parameter in beside_parameters(model, name).parameters}
    named = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    found = {name: spec for pattern, spec in patterns.items() for name in matching(pattern, named, what)}
    return {name: spec for name, spec in found.items() if name not in gone}


def drop_beside(model: nn.Module, name: str) -> None:
    """Delete a module from every layer of a model, in place."""
    for mlp in [module for module in model.modules() if isinstance(module, MLP)]:
        if name in mlp.beside:
            del mlp.beside[name]


def without_beside(region: str, name: str) -> Ablation:
    """Return the ablation that leaves a module out: of a copy of the model, which has nothing of it."""
    return without(region, lambda model: drop_beside(model, name))


def parse_profile(text: str, known: Sequence[str], where: str = "profile") -> tuple[str, ...]:
    """Return the parts of a profile such as `core+a`, in the order of `known`, without the core.

    Raises: UserError for a part that is not known or is named twice, or a profile without `core`.
    """
    parts = [part.strip() for part in text.split("+")]
    for part in parts:
        if part != CORE and part not in known:
            raise unknown(f"part of {where}={text}:", part, [CORE, *known])
    if len(set(parts)) < len(parts) or CORE not in parts:
        raise UserError(f"{where}={text}: must name {CORE}, and each part once, such as {'+'.join([CORE, *known][:2])}")
    return tuple(name for name in known if name in parts)


@contextmanager
def dosed(model: nn.Module, doses: Mapping[str, float | torch.Tensor]) -> Iterator[None]:
    """Multiply modules' outputs by doses in the passes inside the block; modules that are not named are left out.

    Raises: UserError for an unknown module.
    """
    known = beside(model)
    for name in doses:
        if name not in known:
            raise unknown("module", name, known)
    try:
        for name, modules in known.items():
            for module in modules.values():
                dose = doses.get(name, 0.0)
                module.dose = dose if isinstance(dose, torch.Tensor) else float(dose)
        yield
    finally:
        for modules in known.values():
            for module in modules.values():
                module.dose = 1.0


class Profiles:
    """Several access profiles of one model in one batch, each row with its own; the core is not copied.

        profiles = Profiles(model)
        with profiles.of(["core", "core+a", "core+a+b"]):
            logits = model(tokens)  # (3, length, vocabulary)

    One block at a time: a model that several threads use needs a lock around it.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.names = model, list(beside(model))
        if not self.names:
            raise UserError(f"Profiles: a {type(model).__name__} has no modules beside its MLPs")

    @contextmanager
    def of(self, rows: Sequence[str], dose: Mapping[str, float] | None = None) -> Iterator[None]:
        """Use the profile `rows[i]` for row i of every batch inside the block; `dose` scales modules that are used.

        Raises: UserError for an unknown profile, or a batch of another number of rows.
        """
        used, scale = [parse_profile(row, self.names) for row in rows], dose or {}
        example = next(self.model.parameters())

        def doses(name: str) -> Any:
            values = [scale.get(name, 1.0) if name in row else 0.0 for row in used]
            if len(set(values)) == 1:
                return values[0]  # a module that no row uses is not computed
            return torch.tensor(values, dtype=example.dtype, device=example.device).view(-1, 1, 1)

        with dosed(self.model, {name: doses(name) for name in self.names}):
            yield
