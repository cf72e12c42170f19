"""What a run claims, and whether it holds."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Claim:
    """A claim that a run makes, whether it holds, and what was found."""

    what: str
    holds: bool
    found: str
