"""Ranges and choices of values, for the schema's keys and as annotations of a component's constructor.

    def __init__(self, hidden: list[Annotated[int, Between(1, WIDTH)]], norm: Literal["group", "batch"] = "group")

Such a constructor needs no checks of its own: `gradroute.config.components` applies them before it is called.
"""

from dataclasses import dataclass

from gradroute.errors import UserError, unknown

WIDTH = 65536  # units of a layer
LAYERS = 64
MANY = 10**9  # updates, data points, labels
WEIGHT = 10**6  # of a loss; more would overflow float32 within a few layers


def require(holds: bool, key: str, value: object, right: str) -> None:
    """Raise UserError unless `holds`; `right` says what the value of `key` must be."""
    if not holds:
        raise UserError(f"{key}={value}: must be {right}")


def require_number(key: str, value: object, least: float, largest: float, kind: type = float) -> None:
    """Raise UserError unless the value is a number in the range; with `kind=int`, a whole number."""
    number = isinstance(value, (int, kind)) and not isinstance(value, bool)
    holds = number and least <= value <= largest  # type: ignore[operator]  # never true of nan
    require(holds, key, value, f"from {least} to {largest}")


def one_of(key: str, value: object, valid: tuple[str, ...]) -> None:
    """Raise UserError, with the nearest valid values, unless the value is valid."""
    if value not in valid:
        raise unknown(f"value of {key}:", value, valid)


@dataclass(frozen=True)
class Between:
    """Annotation of a number: its smallest and its largest value."""

    least: float
    largest: float

    def check(self, key: str, value: object) -> None:
        """Raise UserError for a value outside of the range."""
        require_number(key, value, self.least, self.largest, float)


@dataclass(frozen=True)
class Items:
    """Annotation of a list: its smallest and largest length, and whether its items must differ."""

    least: int = 1
    largest: int = MANY
    each_once: bool = False
    right: str = ""

    def check(self, key: str, value: object) -> None:
        """Raise UserError for a list of another length, or with duplicates."""
        items = list(value) if isinstance(value, list | tuple | dict) else []
        most = f" to {self.largest}" if self.largest < MANY else " or more"
        right = self.right or f"a list of {self.least}{most} items"
        require(self.least <= len(items) <= self.largest, key, value, right)
        require(not self.each_once or len({*map(repr, items)}) == len(items), key, value, "a list with each item once")


@dataclass(frozen=True)
class Text:
    """Annotation of a text that must not be empty; `right` says what it must be."""

    right: str

    def check(self, key: str, value: object) -> None:
        """Raise UserError for an empty or unprintable text."""
        require(isinstance(value, str) and value.strip() != "" and value.isprintable(), key, repr(value), self.right)
