"""One self-contained HTML page: no network, every value escaped."""

import base64
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Coloured = tuple[str, list[tuple[str, float]]]  # a title, and tokens with their shares


@dataclass
class Table:
    """A table with sortable columns; cells are text or numbers. long: its texts span several lines."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    long: bool = False


@dataclass
class Page:
    """The content of a page, from the top: verdict, lead figures, tables, documents, figures, listings, folded texts.

    A figure is a title and a PNG. A document is a title and tokens with their shares, from 0 to 1, which colour them.
    """

    title: str
    verdict: list[str]
    tables: list[Table]
    figures: list[tuple[str, bytes]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    documents: list[Coloured] = field(default_factory=list)
    listings: list[Table] = field(default_factory=list)
    lead: list[tuple[str, bytes]] = field(default_factory=list)

    def html(self) -> str:
        """Return the page as one HTML document."""
        import jinja2

        loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
        environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True)
        template = environment.get_template("page.html.j2")
        names = ("title", "verdict", "tables", "texts", "documents", "listings")
        figures = {name: list(map(_embedded, getattr(self, name))) for name in ("lead", "figures")}
        return template.render({name: getattr(self, name) for name in names}, **figures, shown=_shown)


def _embedded(figure: tuple[str, bytes]) -> dict[str, str]:
    title, data = figure
    return {"title": title, "data": base64.b64encode(data).decode()}


def _shown(value: float) -> str:
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.4f}"
    return str(value)
