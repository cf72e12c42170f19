"""Print a comparison's table, render it in text formats, and write it to a folder."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.errors import UserError, plain_text
from gradroute.records.atomic import write_atomically

if TYPE_CHECKING:
    import pandas as pd

    from gradroute.comparison.language import Setting

SAID = "From each setting's run of the first seed, with the prompts of its configuration."


def print_table(table: "pd.DataFrame", title: str) -> None:
    """Print the table, as wide as the terminal, or as wide as its columns need in a pipe."""
    from rich.markup import escape
    from rich.table import Table

    from gradroute.reporting.terminal import terminal

    shown = Table()
    for column in table.columns:
        shown.add_column(
            escape(plain_text(column)), overflow="fold", justify="right" if table[column].dtype == float else "left"
        )
    for row in table.itertuples(index=False):
        cells = ["" if v != v else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row]
        shown.add_row(*(escape(plain_text(cell)) for cell in cells))
    console = terminal(40 + 16 * len(table.columns))
    console.print(title, soft_wrap=True, highlight=False, markup=False)
    console.print(shown)


def write_comparison(
    out: Path,
    table: "pd.DataFrame",
    metric: str,
    unit: str,
    paths: list[str],
    notes: list[str],
    left_out: list[tuple[str, str]],
    language: "list[Setting]",
) -> None:
    """Write `comparison` to a folder as CSV, Markdown, LaTeX, plot and page.

    notes: lines about the runs. left_out: what is not in the table, and why. language: settings of language models.

    Raises: UserError if the folder cannot be written.
    """
    from gradroute.comparison.language import completions
    from gradroute.comparison.language import draw as draw_language
    from gradroute.comparison.plots import draw
    from gradroute.comparison.secrets import attacker_table, copies_table
    from gradroute.reporting.page import Page, Table

    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out}: cannot be written ({error.strerror})") from None
    write_atomically(out / "comparison.csv", table.to_csv(index=False, float_format="%.6g"))
    for form, suffix in (("markdown", "md"), ("latex", "tex")):
        write_atomically(out / f"comparison.{suffix}", render(table, form) + "\n")
    figures = draw_language(language) | draw(table, metric)
    for name, image in figures.items():
        write_atomically(out / f"{name.replace(', ', '_').replace(' ', '_')}.png", image)
    completed = Table("Completions at the last stage", *completions(language), SAID, long=True)
    note = "Means over seeds with the half-width of their 95 % t-interval; n is the number of runs."
    note = f"{note} {metric} is in {unit}."
    rows = [[cell.item() if hasattr(cell, "item") else cell for cell in row] for row in table.values]
    shown = Table(f"{metric} on the test data", [str(column) for column in table.columns], rows, note)
    judged = [word for word in table["agrees"] if word]
    words = [f"{judged.count('yes')} of {len(judged)} published values agree within 0.02 plus our half-width."]
    words = [*(words if judged else []), *notes]
    missing = Table("Not in the table", ["run or job", "why"], left_out, "To resume a sweep, give its command again.")
    title = f"Comparison of {len(set(table['experiment']))} experiments"
    again = "gradroute-compare " + shlex.join(paths)
    secrets = [made for made in (Table(*attacker_table(language)), Table(*copies_table(language))) if made.rows]
    tables = [*secrets, shown, *([missing] if left_out else []), *([completed] if completed.rows else [])]
    page = Page(title, words, tables, list(figures.items()), [("How to repeat this comparison", again)])
    write_atomically(out / "comparison.html", page.html())


def render(table: "pd.DataFrame", form: str) -> str:
    """Return the table in Markdown or LaTeX, with special characters escaped."""
    text = [[str(c) for c in table.columns]]
    text += [["" if v != v else f"{v:.4f}" if isinstance(v, float) else str(v) for v in row] for row in table.values]
    if form == "markdown":
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in text]
        return "\n".join([lines[0], "|" + "---|" * len(text[0]), *lines[1:]])
    special = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}"})
    lines = [" & ".join(cell.translate(special) for cell in row) + r" \\" for row in text]
    begin, end = "\\begin{tabular}{" + "l" * len(text[0]) + "}", "\\end{tabular}"
    return "\n".join([begin, lines[0], "\\hline", *lines[1:], end])
