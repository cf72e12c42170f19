"""`gradroute-tokens`: show which tokens a configuration's rules route, without training (GR table 3)."""

import shlex
import sys
from pathlib import Path

from gradroute.commands.run import composed_configs
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


def show_tokens(config: Config) -> Path:
    """Print the most and the least routed tokens, write them to a page with coloured documents, and return its path.

    Raises: UserError for a mistake in the configuration or the data, for images, or if no group weighs tokens.
    """
    from gradroute.tasks.base import create
    from gradroute.tasks.language import LanguageModelling

    if not issubclass(locate(config.task[TARGET], "task"), LanguageModelling):
        raise UserError("gradroute-tokens: images have no tokens; use a language model, such as experiment=stories_era")

    task = create(config)
    assert isinstance(task, LanguageModelling)
    weights = task.weights()
    table = Table(*token_table(weights))
    _print(table)
    labelled = ", ".join(f"{int((task.labelled == i).sum())} {name}" for i, name in enumerate(task.names))
    words = [f"{len(task.labelled)} training documents, labelled: {labelled}. Nothing was trained."]
    again = "gradroute-tokens " + shlex.join(sys.argv[1:])
    texts = [("How to make it again", again)]
    page = Page(f"Tokens of {config.name}", words, [table], texts=texts, documents=coloured_documents(weights))
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
        sys.exit(guarded(_show_all))


if __name__ == "__main__":
    main()
