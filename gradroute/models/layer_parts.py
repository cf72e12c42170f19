"""Parts of a language model's layers by what they are: MLP units, attention heads, the residual stream.

A region names a part and layers; the model says which sites these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from gradroute.errors import UserError, unknown
from gradroute.routing import Region

PARTS = ("mlp", "original", "added", "heads", "residual")


@dataclass(frozen=True)
class Place:
    """A site of a layer: a module's name, which of its outputs if it returns several, and its number of units."""

    module: str
    output: int | None
    units: int


@runtime_checkable
class Layered(Protocol):
    """A model that knows the parts of its layers.

    Attributes: `added`, the number of units added to the MLP of each widened layer; `layer_count`; `head_count`.
    """

    added: Mapping[int, int]
    layer_count: int
    head_count: int

    def place(self, part: str, layer: int) -> Place:
        """Return the site of a layer's `mlp`, `heads` or `residual`. Raises: UserError."""
        ...


def region_of(model: nn.Module, where: str, part: str, layers: Sequence[int] | None, units: Any) -> Region:
    """Return the region of a part of a model's layers.

    Args:
        where: the place that error messages name.
        part: `mlp`, `heads`, `residual`, or `original` or `added`: the MLP units before and after widening.
        layers: null for all layers; of `original` and `added`, for the widened ones.
        units: units, as `gradroute.routing.regions.parse_units` takes them, of the MLP, heads or stream; null for all
            of the part.

    Raises: UserError for a model that does not know its parts, or layers, parts and units that it does not have.
    """
    if part not in PARTS:
        raise unknown(f"value of {where}.part:", part, PARTS)
    if not isinstance(model, Layered):
        raise UserError(f"{where}.part={part}: a {type(model).__name__} does not say where that is; name a site")
    chosen = list(layers) if layers is not None else _layers(model, where, part)
    outside = [layer for layer in chosen if not 0 <= layer < model.layer_count]
    if outside:
        raise UserError(f"{where}.layers={outside[0]}: is out of range; layers go from 0 to {model.layer_count - 1}")
    try:
        places = [model.place("mlp" if part in ("original", "added") else part, layer) for layer in chosen]
    except UserError as error:
        raise UserError(f"{where}.part={part}: {error}; name one as {where}.site") from None
    if part in ("original", "added") and units is None:
        units = _divided(model, where, part, dict(zip(chosen, places, strict=True)))
    if part == "heads" and isinstance(units, list):
        units = {"heads": units, "of": model.head_count}
    return Region([place.module for place in places], units, output=places[0].output)


def _layers(model: Layered, where: str, part: str) -> list[int]:
    if part not in ("original", "added"):
        return list(range(model.layer_count))
    if not model.added:
        raise UserError(f"{where}.part={part}: no units were added; set model.expand and model.added")
    return list(model.added)


def _divided(model: Layered, where: str, part: str, places: Mapping[int, Place]) -> str:
    """Return the units before, or from, the first added one. Raises: UserError if layers differ in it."""
    missing = [layer for layer in places if layer not in model.added]
    if missing:
        raise UserError(f"{where}.layers={missing[0]}: no units were added there; name layers of model.expand")
    firsts = {place.units - model.added[layer] for layer, place in places.items()}
    if len(firsts) > 1:
        raise UserError(f"{where}: layers have MLPs of different sizes, {sorted(firsts)}; use one region for each size")
    (first,) = firsts
    return f"0:{first}" if part == "original" else f"{first}:"
