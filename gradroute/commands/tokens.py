"""`gradroute-tokens`: show which tokens a configuration's rules route, without training (GR table 3)."""

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from gradroute.commands.run import composed_configs
from gradroute.commands.version import answered
from gradroute.config.doors import TARGET
from gradroute.config.identity import config_hash
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import UserError, plain_text
from gradroute.records.atomic import write_atomically
from gradroute.reporting.language_tables import coloured_documents, token_table
from gradroute.reporting.page import Page, Table
from gradroute.running.exit_status import guarded
from gradroute.training.signals import heard

if TYPE_CHECKING:
    from gradroute.tasks.mean_weights import MeanWeight


MEANS = "Routed tokens occur in their group alone. If their mean weight is above 0, the region still learns them."


def _warning(mean: "MeanWeight", compensate: str | None) -> str:
    """Return what is wrong with a mean weight above 0, and what to do."""
    right = "raise routing.compensate_limit" if compensate else "set routing.compensate=labels"
    return (
        f"{mean.labelled:.0%} of '{mean.group}' is labelled, so its routed tokens have the mean weight "
        f"{mean.routed:+.2f} in '{mean.region}', which still learns them; {right}"
    )


def _print_means(table: Table) -> None:
    """Print the mean weights."""
    from rich.markup import escape
    from rich.table import Table as Printed

    from gradroute.reporting.terminal import terminal

    printed = Printed(title=table.title, caption=table.note)
    for column in table.columns:
        printed.add_column(column, justify="left" if column in ("group", "region") else "right")
    for group, region, *numbers in table.rows:
        cells = [f"{numbers[0]:g}", f"{numbers[1]:.0%}", *(f"{number:+.3f}" for number in numbers[2:])]
        printed.add_row(escape(plain_text(group)), escape(plain_text(region)), *cells)
    terminal(100).print(printed)


def show_tokens(config: Config) -> Path:
    """Print the most and the least routed tokens, write them to a page with coloured documents, and return its path.

    Raises: UserError for a mistake in the configuration or the data, for images, or if no group weighs tokens.
    """
    from gradroute.tasks.base import create
    from gradroute.tasks.language import LanguageModelling
    from gradroute.tasks.mean_weights import mean_weights

    if not issubclass(locate(config.task[TARGET], "task"), LanguageModelling):
        raise UserError("gradroute-tokens: images have no tokens; use a language model, such as experiment=stories_era")

    task = create(config)
    assert isinstance(task, LanguageModelling)
    weights, mean = task.weights(), mean_weights(task)
    table = Table(*token_table(weights))
    _print(table)
    compensate = config.routing.compensate
    warnings = [_warning(each, compensate) for each in mean if each.weight <= 0 and each.expected > 1e-9]
    columns = ["group", "region", "weight", "labelled", "mean of routed tokens", "mean of all tokens"]
    rows = [[m.group, m.region, m.weight, m.labelled, m.routed, m.every] for m in mean]
    means = Table("Mean weights over documents with and without a label", columns, rows, MEANS)
    _print_means(means)
    for warning in warnings:
        print(f"warning: {plain_text(warning)}")
    labelled = ", ".join(f"{int((task.labelled == i).sum())} {name}" for i, name in enumerate(task.names))
    words = [f"{len(task.labelled)} training documents, labelled: {labelled}. Nothing was trained."]
    words += warnings
    again = "gradroute-tokens " + shlex.join(sys.argv[1:])
    texts = [("How to make it again", again)]
    page = Page(f"Tokens of {config.name}", words, [table, means], texts=texts, documents=coloured_documents(weights))
    folder = Path(config.output_dir) / config.name
    path = folder / f"tokens_{config_hash(config)}_seed{config.seed}.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page.html())
    except OSError as error:
        raise UserError(f"output_dir={config.output_dir}: {folder} cannot be written ({error.strerror})") from None
    print(path)
    return path


def _print(table: Table) -> None:
    """Print the most and the least routed tokens of each group side by side."""
    from rich.markup import escape
    from rich.table import Table as Printed

    from gradroute.reporting.terminal import terminal

    console = terminal(100)
    for group in dict.fromkeys(row[0] for row in table.rows):
        printed = Printed(title=f"{table.title} of {escape(plain_text(group))}", caption=table.note)
        for kind in ("most", "least"):
            printed.add_column(f"{kind} routed")
            printed.add_column("count", justify="right")
            printed.add_column("weight", justify="right")
        found = [[row[2:] for row in table.rows if row[:2] == [group, kind]] for kind in ("most", "least")]
        for pair in zip(*found, strict=True):
            printed.add_row(*(cell for token, count, weight in pair
                              for cell in (escape(plain_text(token)), str(count), f"{weight:.3f}")))  # fmt: skip
        console.print(printed)


def _show_all() -> None:
    for config in composed_configs(sys.argv[1:]):
        show_tokens(config)


def main() -> None:
    """Entry point of `gradroute-tokens`."""
    with heard():
        answered(sys.argv[1:])
        sys.exit(guarded(_show_all))


if __name__ == "__main__":
    main()
