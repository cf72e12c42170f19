"""The space of a search: dimensions whose values are overrides of the configuration.

A dimension is one of: `choices`, a list of values or a mapping from names to overrides that are set together; a range
from `low` to `high`, of whole numbers if both are, with `log` or `step`; or `parts`, sizes that sum to `of`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gradroute.config.overrides import literal
from gradroute.errors import UserError, unknown

Overrides = list[str]


class Suggests(Protocol):
    """Protocol for suggesting values: a trial of Optuna, or an `End` of the space."""

    def suggest_categorical(self, name: str, choices: list[str]) -> Any:
        """Suggest one of the choices."""
        ...

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest a number in a range."""
        ...

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggest a whole number in a range."""
        ...


@dataclass(frozen=True)
class Choices:
    """One of several values of a key, or of several named sets of overrides."""

    name: str
    options: dict[str, Overrides]

    def suggest(self, trial: Suggests) -> Overrides:
        """Return the overrides that the trial suggests."""
        return self.options[trial.suggest_categorical(self.name, list(self.options))]


@dataclass(frozen=True)
class Range:
    """A number from `low` to `high`."""

    name: str
    low: float
    high: float
    step: float | None
    log: bool

    def suggest(self, trial: Suggests) -> Overrides:
        """Return the override that the trial suggests."""
        if isinstance(self.low, int) and isinstance(self.high, int):
            step = 1 if self.step is None else int(self.step)
            return [f"{self.name}={trial.suggest_int(self.name, self.low, self.high, step=step, log=self.log)}"]
        value = trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)
        return [f"{self.name}={value:.6g}"]


@dataclass(frozen=True)
class Parts:
    """Sizes of `parts` regions, each `least` or more, that sum to `of`; each is a share of what earlier ones leave."""

    name: str
    parts: int
    of: int
    least: int

    def suggest(self, trial: Suggests) -> Overrides:
        """Return the override that the trial suggests."""
        sizes: list[int] = []
        for number in range(self.parts - 1):
            free = self.of - sum(sizes) - self.least * (self.parts - number)
            share = trial.suggest_float(f"{self.name}.{number}", 0.0, 1.0)
            sizes.append(self.least + min(free, math.floor(share * (free + 1))))
        return [f"{self.name}={literal([*sizes, self.of - sum(sizes)])}"]


Dimension = Choices | Range | Parts
KINDS = {"choices": {"choices"}, "low": {"low", "high", "step", "log"}, "parts": {"parts", "of", "least"}}


def dimension(name: str, given: Any) -> Dimension:
    """Build a dimension of a search. Raises: UserError for one that is empty, contradictory or of no kind."""
    where = f"search.space.{name}"
    kind = next((kind for kind in KINDS if isinstance(given, Mapping) and kind in given), None)
    if kind is None:
        raise UserError(f"{where}: give choices: […], or low: and high:, or parts: and of:")
    for key in given:
        if key not in KINDS[kind]:
            raise unknown(f"key of {where}:", key, KINDS[kind])
    if kind == "choices":
        return _choices(name, given["choices"], where)
    return _range(name, given, where) if kind == "low" else _parts(name, given, where)


def _choices(name: str, choices: Any, where: str) -> Choices:
    if not isinstance(choices, list | Mapping) or len(choices) < 2:
        raise UserError(f"{where}.choices: must be two or more values, or named sets of overrides")
    if not isinstance(choices, Mapping):
        options = {literal(value): [f"{name}={literal(value)}"] for value in choices}
    else:
        if odd := [n for n, sets in choices.items() if not isinstance(sets, Mapping)]:
            raise UserError(f"{where}.choices.{odd[0]}: must be a mapping of keys to values")
        options = {str(n): [f"{k}={literal(v)}" for k, v in sets.items()] for n, sets in choices.items()}
    if len(options) < len(choices):
        raise UserError(f"{where}.choices: has a value twice; give each value once")
    return Choices(name, options)


def _range(name: str, given: Mapping[str, Any], where: str) -> Range:
    low, high, step, log = given["low"], given.get("high"), given.get("step"), given.get("log", False)
    for key, value in (("low", low), ("high", high), ("step", step)):
        number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        if not number and not (key == "step" and value is None):
            raise UserError(f"{where}.{key}={value}: must be a number")
    assert high is not None
    if not isinstance(log, bool):
        raise UserError(f"{where}.log={log}: must be true or false")
    if low >= high:
        raise UserError(f"{where}: the range from low={low} to high={high} is empty; low must be below high")
    if log and (low <= 0 or step is not None):
        raise UserError(f"{where}: log=true needs low above 0, and no step")
    if step is not None and (step <= 0 or step > high - low):
        raise UserError(f"{where}.step={step}: must be above 0 and at most {high - low}")
    if step is not None and isinstance(low, int) and isinstance(high, int) and not isinstance(step, int):
        raise UserError(f"{where}.step={step}: must be a whole number, as low and high are")
    return Range(name, low, high, step, log)


def _parts(name: str, given: Mapping[str, Any], where: str) -> Parts:
    sizes = {"parts": given["parts"], "of": given.get("of"), "least": given.get("least", 1)}
    for key, value in sizes.items():
        if type(value) is not int or value < (2 if key == "parts" else 1):
            raise UserError(f"{where}.{key}={value}: must be a whole number, {2 if key == 'parts' else 1} or more")
    if sizes["parts"] * sizes["least"] > sizes["of"]:
        raise UserError(f"{where}: {sizes['parts']} parts of {sizes['least']} or more exceed of={sizes['of']}")
    return Parts(name, **sizes)


class End:
    """Suggests the lowest or highest value of a range, or one choice, to check a space before the search."""

    def __init__(self, last: bool, choice: int = 0) -> None:
        self.last, self.choice = last, choice

    def suggest_categorical(self, name: str, choices: list[str]) -> str:
        """Suggest the choice by its number, or the last one."""
        return choices[min(self.choice, len(choices) - 1)]

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest an end of the range."""
        return high if self.last else low

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggest an end of the range."""
        return high if self.last else low


def ends(found: Dimension) -> list[Overrides]:
    """Return the overrides to check a dimension with before the search: its ends, or all choices."""
    if isinstance(found, Choices):
        return [found.suggest(End(False, number)) for number in range(len(found.options))]
    return [found.suggest(End(last)) for last in (False, True)]


class Given:
    """Suggests given values, and the lowest of a range or the first choice where none is given. Notes what was asked.

    Raises: UserError for a value outside of its range or choices.
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values, self.asked = values, list[str]()

    def _of(self, name: str, default: Any, fits: Callable[[Any], bool], right: str) -> Any:
        self.asked.append(name)
        value = self.values.get(name, default)
        if not fits(value):
            raise UserError(f"search.start.{name}={value}: must be {right}")
        return value

    def suggest_categorical(self, name: str, choices: list[str]) -> Any:
        """Suggest the given choice."""
        return self._of(name, choices[0], lambda value: value in choices, f"one of {choices}")

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None = None, log: bool = False
    ) -> float:
        """Suggest the given number."""
        fits = lambda value: isinstance(value, int | float) and low <= value <= high  # noqa: E731
        return float(self._of(name, low, fits, f"from {low} to {high}"))

    def suggest_int(self, name: str, low: int, high: int, *, step: int = 1, log: bool = False) -> int:
        """Suggest the given whole number."""
        fits = lambda value: type(value) is int and low <= value <= high  # noqa: E731
        return int(self._of(name, low, fits, f"a whole number from {low} to {high}"))


def check_start(start: Mapping[str, Any], dimensions: Sequence[Dimension]) -> None:
    """Raise UserError if values that a search is to start with name no parameter of the space, or do not fit it."""
    given = Given(start)
    for one in dimensions:
        one.suggest(given)
    for name in start:
        if name not in given.asked:
            raise unknown("parameter of search.start:", name, given.asked)


def space(given: Mapping[str, Any]) -> list[Dimension]:
    """Build every dimension of a search."""
    return [dimension(name, one) for name, one in given.items()]
