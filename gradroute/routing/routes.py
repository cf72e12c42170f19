"""Routes: the weight of a group's gradients in a region, and the updates at which it applies."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields

from gradroute.errors import UserError, unknown

LARGEST = 10**6  # of a weight; more would leave float32's range within a few layers
STEPS = 10**9  # updates
RIGHT = "a finite number from -1000000 to 1000000, or {weight: number, forward: number, start: step, ramp: …, stop: …}"


@dataclass(frozen=True)
class Route:
    """Gradient weight of one group in one region.

    weight: multiplies the group's gradients there, any finite real (GR section 3); 1 leaves them as they are.
    forward: multiplies the group's activations there in the forward pass too; 0 is SGTM's masking of reserved units for
        retain data (arXiv 2512.05648). Any value but 1 changes the forward pass.
    start, ramp, stop: updates, counted from 0. Both factors are 1 before `start`, change linearly to their values
        over `ramp` updates, and are 1 again from `stop` on; None means never.
    """

    weight: float
    forward: float = 1.0
    start: int = 0
    ramp: int = 0
    stop: int | None = None

    @property
    def scheduled(self) -> bool:
        """Whether its values depend on the update."""
        return self.start > 0 or self.ramp > 0 or self.stop is not None

    def at(self, step: int) -> tuple[float, float]:
        """Return the weight and the forward factor at update `step`."""
        if step < self.start or (self.stop is not None and step >= self.stop):
            return 1.0, 1.0
        if step >= self.start + self.ramp:
            return self.weight, self.forward
        share = (step - self.start) / self.ramp
        return 1 + share * (self.weight - 1), 1 + share * (self.forward - 1)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def read_route(spec: object, where: str) -> Route:
    """Return the `Route` for a number, a mapping of its fields or a `Route`. Raises: UserError for invalid values."""
    if _is_number(spec):
        return Route(float(spec))  # type: ignore[arg-type]
    if isinstance(spec, Route):
        spec = asdict(spec)
    if not isinstance(spec, Mapping) or "weight" not in spec:
        raise UserError(f"{where}={spec}: must be {RIGHT}")
    names = [field.name for field in fields(Route)]
    for key, value in spec.items():
        if key not in names:
            raise unknown(f"key of {where}:", key, names)
        if key in ("weight", "forward") and not _is_number(value):
            raise UserError(f"{where}.{key}={value}: must be a finite number from {-LARGEST} to {LARGEST}")
        whole = type(value) is int and 0 <= value <= STEPS
        if key in ("start", "ramp", "stop") and not whole and not (key == "stop" and value is None):
            raise UserError(f"{where}.{key}={value}: must be a number of updates, from 0 to {STEPS}")
    route = Route(**spec)
    if route.stop is not None and route.stop <= route.start + route.ramp:
        raise UserError(f"{where}.stop={route.stop}: must come after start + ramp = {route.start + route.ramp}")
    return Route(float(route.weight), float(route.forward), route.start, route.ramp, route.stop)


Routes = Mapping[str, Mapping[str, float | Route | Mapping[str, float | int | None]]]  # group to region to route


def read_routes(routes: Routes, groups: Iterable[str], regions: Iterable[str]) -> dict[tuple[str, str], Route]:
    """Return the route of every named (group, region). Raises: UserError for unknown names and invalid routes."""
    groups, regions = list(groups), list(regions)
    read: dict[tuple[str, str], Route] = {}
    for group, row in routes.items():
        if group not in groups:
            raise unknown("group in routes:", group, groups)
        for region, spec in row.items():
            if region not in regions:
                raise unknown(f"region in routes.{group}:", region, regions)
            read[group, region] = read_route(spec, f"routes.{group}.{region}")
    return read


def scheduled(routes: Mapping[tuple[str, str], Route]) -> dict[tuple[str, str], Route]:
    """Return the routes whose values change from update to update."""
    return {pair: route for pair, route in routes.items() if route.scheduled}


def owned(routes: Mapping[tuple[str, str], Route], group: str, regions: Sequence[str]) -> int | None:
    """Return the index of the region where a group has its highest weight, or None if several regions share it."""
    weights = [routes[group, region].weight if (group, region) in routes else 1.0 for region in regions]
    return weights.index(max(weights)) if weights.count(max(weights)) == 1 else None
