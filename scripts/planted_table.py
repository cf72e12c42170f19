"""Print how often a planted behaviour is shown, and what it costs to leave it out, in Markdown, from finished runs.

`RUNS` may also be a file that `--csv` wrote, such as that of another machine.

usage: python scripts/planted_table.py RUNS… [--csv FILE]
"""

from functools import partial

from final_values import Values, last_relearned, print_table

from gradroute.running.exit_status import guarded

METHODS = {  # by experiment: the name in the table, and whether an adapter is left out
    "planted_behaviour": ("routed to an adapter, which is left out", True),
    "planted_joint": ("one adapter for all, left out", True),
    "planted_filtering": ("filtering: not trained on what is labelled", False),
    "planted_placebo_labels": ("placebo: labels at random", True),
    "planted_placebo_direction": ("placebo: a random direction", True),
}
COLUMNS = (
    "shown, trained", "shown, released", "shown, relearned", "without the trigger", "loss, trained", "loss, released",
    "loss, relearned",
)  # fmt: skip
GROUP = "retain"  # the ordinary stories; with a random direction, all that are not far along it


def row(values: Values, left_out: bool) -> list[float]:
    """Return a run's numbers in the order of `COLUMNS`: shares of prompts, and nats per token of ordinary stories."""
    again = last_relearned(head for head, *_ in values)
    stages = (("model", "all"), ("model_ablated", "forget") if left_out else ("model", "all"), (again, "all"))
    rates = [values[head, region, "all", "rate_triggered"] for head, region in stages]
    losses = [values[head, region, GROUP, "cross_entropy"] for head, region in stages]
    return [*rates, values[(*stages[0], "all", "rate_plain")], *losses]


def main() -> None:
    """Print the table; with `--csv`, write what it is made of."""
    print_table(
        __doc__, ("rate_triggered", "rate_plain", "cross_entropy"), COLUMNS,
        {name: (title, partial(row, left_out=left_out)) for name, (title, left_out) in METHODS.items()}, ".2f",
    )  # fmt: skip


if __name__ == "__main__":
    raise SystemExit(guarded(main))
