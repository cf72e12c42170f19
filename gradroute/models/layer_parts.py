"""Parts of a language model's layers by what they are: MLP units, attention heads, the residual stream.

A region names a part and layers; the model says which sites these are.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torch import nn

from gradroute.errors import UserError, unknown
from gradroute.routing import Region, parse_units

PARTS = ("mlp", "original", "added", "heads", "added_heads", "residual")
WIDENED = {"original": "added", "added": "added", "added_heads": "added_heads"}  # attribute with the number of units
SITES = {"original": "mlp", "added": "mlp", "added_heads": "heads"}


@dataclass(frozen=True)
class Place:
    """A site of a layer: a module's name, which of its outputs if it returns several, and its number of units."""

    module: str
    output: int | None
    units: int


@runtime_checkable
class Layered(Protocol):
    """A model that knows the parts of its layers.

    Attributes: `added`, the number of units added to the MLP of each widened layer, and `added_heads`, those added to
    the heads; `layer_count`; `head_count`.
    """

    added: Mapping[int, int]
    added_heads: Mapping[int, int]
    layer_count: int
    head_count: int

    def place(self, part: str, layer: int) -> Place:
        """Return the site of a layer's `mlp`, `heads` or `residual`. Raises: UserError."""
        ...

    def mlp_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's MLP units. Raises: UserError."""
        ...

    def head_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's heads. Raises: UserError."""
        ...

    def get_submodule(self, target: str) -> nn.Module:
        """Return a module by its name."""
        ...


def region_of(model: nn.Module, where: str, part: str, layers: Sequence[int] | None, units: Any) -> Region:
    """Return the region of a part of a model's layers.

    Args:
        where: the place that error messages name.
        part: `mlp`, `heads`, `residual`; `original` or `added`: the MLP units before and after widening; or
            `added_heads`.
        layers: null for all layers; of `original`, `added` and `added_heads`, for the widened ones.
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
        places = [model.place(SITES.get(part, part), layer) for layer in chosen]
    except UserError as error:
        raise UserError(f"{where}.part={part}: {error}; name one as {where}.site") from None
    if part in WIDENED and units is None:
        units = _divided(model, where, part, dict(zip(chosen, places, strict=True)))
    if part == "heads" and isinstance(units, list):
        units = {"heads": units, "of": model.head_count}
    return Region([place.module for place in places], units, output=places[0].output)


def parameters_of(model: nn.Module, region: Region, where: str) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Return the parameters of a region of MLP units or heads: by name, an axis and the units' indices on it.

    These are rows and biases of the layers that make the units, and columns of the layer that reads them. With
    grouped-query attention, a key and value head belongs to the region if all of its query heads do.

    Raises: UserError for a residual stream, or layers of another kind than `torch.nn.Linear`.
    """
    assert isinstance(model, Layered)
    found: dict[str, tuple[int, tuple[int, ...]]] = {}
    places = {model.place(part, n).module: (part, n) for part in ("mlp", "heads") for n in range(model.layer_count)}
    for site in region.sites:
        if site.module not in places:
            raise UserError(f"{where}: the residual stream has no parameters of its own; name a region of mlp or heads")
        part, layer = places[site.module]
        producers, consumers = model.mlp_layers(layer) if part == "mlp" else model.head_layers(layer)
        total = model.place(part, layer).units
        units = parse_units(region.units, total, where, model.head_count)
        for name in producers:
            rows = _rows(units, total, len(model.get_submodule(name).weight), model, layer)  # type: ignore[arg-type]
            found |= {f"{name}.{key}": (0, rows) for key, _ in model.get_submodule(name).named_parameters() if rows}
        found |= {f"{name}.weight": (1, units) for name in consumers}
    return found


def _rows(units: tuple[int, ...], total: int, rows: int, model: Layered, layer: int) -> tuple[int, ...]:
    """Return the rows of a layer with fewer rows than units: those of which all query heads are among the units."""
    if rows == total:
        return units
    size = (total - model.added_heads.get(layer, 0)) // model.head_count
    shared, own = total // rows, set(units)  # query heads of one key and value head
    return tuple(
        row for row in range(rows)
        if all((row // size * shared + head) * size + row % size in own for head in range(shared))
    )  # fmt: skip


def _layers(model: Layered, where: str, part: str) -> list[int]:
    if part not in WIDENED:
        return list(range(model.layer_count))
    widened: Mapping[int, int] = getattr(model, WIDENED[part])
    if not widened:
        what = "heads" if part == "added_heads" else "units"
        raise UserError(f"{where}.part={part}: no {what} were added; set model.expand and model.{WIDENED[part]}")
    return list(widened)


def _divided(model: Layered, where: str, part: str, places: Mapping[int, Place]) -> str:
    """Return the units before, or from, the first added one. Raises: UserError if layers differ in it."""
    widened: Mapping[int, int] = getattr(model, WIDENED[part])
    missing = [layer for layer in places if layer not in widened]
    if missing:
        raise UserError(f"{where}.layers={missing[0]}: no units were added there; name layers of model.expand")
    firsts = {place.units - widened[layer] for layer, place in places.items()}
    if len(firsts) > 1:
        raise UserError(
            f"{where}: layers have different numbers of units, {sorted(firsts)}; use one region for each size"
        )
    (first,) = firsts
    return f"0:{first}" if part == "original" else f"{first}:"
