"""Print what policies of `scripts/rewards.sh` write before and after an adapter is left out, from finished runs.

`RUNS` may also be a file that `--csv` wrote, such as that of another machine.

usage: python scripts/rewards_table.py RUNS… [--csv FILE]
"""

from functools import partial

from final_values import Values, print_table

from gradroute.running.exit_status import guarded

METHODS = {  # by experiment: the name in the table, and the ablation whose model is handed out
    "rewards": ("routed, without the adapter `forget`", ("model_ablated", "forget")),
    "rewards_joint": ("one adapter for all", ("model", "all")),
    "rewards_filtering": ("filtering: no loss on the hacks that are seen", ("model", "all")),
}
COLUMNS = (
    "hacks, trained",
    "hacks, released",
    "wanted, trained",
    "wanted, released",
    "loss, trained",
    "loss, released",
)


def row(values: Values, released: tuple[str, str]) -> list[float]:
    """Return a run's numbers in the order of `COLUMNS`: shares of replies, and nats per token of stories."""
    models = (("model", "all"), released)
    shares = [values[*model, "all", metric] for metric in ("hacked", "true_reward") for model in models]
    return [*shares, *(values[*model, "retain", "cross_entropy"] for model in models)]


def main() -> None:
    """Print the table; with `--csv`, write what it is made of."""
    methods = {name: (title, partial(row, released=model)) for name, (title, model) in METHODS.items()}
    print_table(__doc__, ("hacked", "true_reward", "cross_entropy"), COLUMNS, methods, ".2f")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
