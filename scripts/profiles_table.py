"""Print what each method of `scripts/profiles.sh` gives and withholds, in Markdown, from finished runs.

`RUNS` may also be a file that `--csv` wrote, such as that of another machine.

usage: python scripts/profiles_table.py RUNS… [--csv FILE]
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean

from final_values import Values, print_table

from gradroute.records.metrics import PROFILE, RELEARNED
from gradroute.running.exit_status import guarded

GROUPS = ("sea", "farm", "town", "castle")
SEA = "sea"  # the only group that is relearned, that the adapter holds, and that maximum entropy unlearns
EVERY = "+".join(("core", *GROUPS))
COLUMNS = (
    "core", "a group, given", "a group, withheld", "the sea, given", "the sea, withheld", "the sea, relearned"
)  # fmt: skip


@dataclass(frozen=True)
class Method:
    """A method's name in the table, and where its runs keep the losses: head and region of what withholds and gives.

    Args:
        withheld: the model that is handed out to those who may have the core only; none where nothing is withheld.
        given: the model that is handed out with a group; `{}` stands for the group.
        groups: the groups that the method treats.
    """

    title: str
    withheld: tuple[str, str] | None = (PROFILE, "core")
    given: tuple[str, str] | None = (PROFILE, "core+{}")
    groups: Sequence[str] = GROUPS

    def row(self, losses: Values) -> list[float | None]:
        """Return a run's losses, in nats per token, in the order of `COLUMNS`; None where a method has none."""

        def loss(model: tuple[str, str] | None, *groups: str) -> float | None:
            found = [(model[0], model[1].format(group), group, "cross_entropy") for group in groups] if model else []
            return mean(losses[key] for key in found) if found else None

        again = [value for (head, _, group, _), value in losses.items() if head.startswith(RELEARNED) and group == SEA]
        core = loss(self.withheld or self.given, "core")
        models = (self.given, self.withheld)
        some = [loss(model, *self.groups) if len(self.groups) > 1 else None for model in models]
        return [core, *some, *(loss(model, SEA) for model in models), again[0] if self.withheld else None]


METHODS = {
    "profiles": Method("GRAM"),
    "profiles_filtering": Method("filtering: the core's documents alone", given=None),
    "profiles_experts": Method("DEMix", withheld=(PROFILE, "core+own")),
    "profiles_adapter": Method(
        "an adapter beside a frozen core", ("model_ablated", "sea"), ("model", "all"), groups=[SEA]
    ),
    "profiles_max_entropy": Method("maximum entropy", ("model_unlearned", "all"), None, groups=[SEA]),
    "profiles_half_labels": Method("GRAM, half of the labels"),
    "profiles_filtering_half": Method("filtering, half of the labels", (PROFILE, EVERY), given=None),
    "profiles_control": Method("no routes", None, (PROFILE, EVERY)),
}


def main() -> None:
    """Print the table; with `--csv`, write what it is made of."""
    methods = {name: (method.title, method.row) for name, method in METHODS.items()}
    print_table(__doc__, ("cross_entropy",), COLUMNS, methods, ".3f")


if __name__ == "__main__":
    raise SystemExit(guarded(main))
