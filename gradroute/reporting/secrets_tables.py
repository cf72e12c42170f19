"""What a run's page shows about secrets: what an attacker gets in bits and percent, and whether to believe it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from gradroute.records.metrics import ATTACKED
from gradroute.reporting.language_tables import Titled

STAGES = {"model": "trained", "model_ablated": "ablated", ATTACKED: "attacked"}
KINDS = ("marked", "unmarked", "public")
HELDOUT = "heldout"
MEASURED = ("exposure", "extracted", "secret_bits", "attack_rate", "epsilon", "delta", "noise_multiplier")
COPIES, ATTRIBUTE = "copies_", "attribute_"
Values = Mapping[tuple[str, str, str, str], float]  # by head, region, group and metric


def of_secrets(metric: str) -> bool:
    """Return whether a metric is one of the step `extract`, or of a private training, rather than an error."""
    return metric in MEASURED or metric.startswith("membership_")


def values_of(rows: Iterable[Mapping[str, Any]]) -> Values:
    """Return the values of a run's rows; the losses are those of `cross_entropy`."""
    return {(row["head"], row["region"], row["group"], row["metric"]): row["value"] for row in rows}


def stages_of(values: Values) -> list[str]:
    """Return the heads whose secrets were measured, in the order of the steps."""
    return [head for head in STAGES if any(key[0] == head and key[3] == "exposure" for key in values)]


def kinds_of(values: Values) -> list[str]:
    """Return the kinds of people that were measured."""
    return [kind for kind in KINDS if any(key[2] == kind and key[3] == "exposure" for key in values)]


def loss_of(values: Values, head: str, group: str) -> float | None:
    """Return the loss of a stage on a group; an ablation's region has a name of its own."""
    return next((v for k, v in values.items() if (k[0], k[2], k[3]) == (head, group, "cross_entropy")), None)


def valid(values: Values) -> tuple[bool, str] | None:
    """Return whether membership inference is valid here, and why; None if it was not measured."""
    found = {key[3]: value for key, value in values.items() if key[1] == "validity"}
    if "membership_auc_null" not in found:
        return None
    checks = (("null", "bound", "held-out people against others of them"),
              ("text", "bound_text", "members against held-out people by a bag of their words"))  # fmt: skip
    holds, said = True, []
    for name, bound, what in checks:
        value, limit = found[f"membership_auc_{name}"], found[f"membership_{bound}"]
        holds &= abs(value - 0.5) <= limit
        said.append(f"{what} {value:.2f} (chance: 0.50 ± {limit:.2f})")
    return holds, "; ".join(said)


def verdict(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return sentences about a run's final rows: bits, percent, membership and cost; [] if no secrets were measured."""
    values = values_of(rows)
    stages, kinds = stages_of(values), kinds_of(values)
    if not stages or not kinds:
        return []
    bits = values.get(("model", "all", "all", "secret_bits"))
    nothing = values.get(("model", f"{HELDOUT}_all", "all", "exposure"))
    of = "" if bits is None else f", of {bits:.1f},"
    chance = "" if nothing is None else f"; of people who are in no data {nothing:.1f}"
    lines = []
    for kind in kinds[:2]:
        shown = [(values[head, "all", kind, "exposure"], values[head, "all", kind, "extracted"], STAGES[head])
                 for head in stages if (head, "all", kind, "exposure") in values]  # fmt: skip
        each = ", ".join(f"{got:.1f} from the {stage} model ({share:.0%} word for word)" for got, share, stage in shown)
        lines.append(f"Bits{of} that an attacker gets of {kind} people's secrets: {each}{chance}.")
    lost = values.get((ATTACKED, "all", "all", "attack_diverged"))
    lines += [f"The attack diverged at {lost:.0f} of its learning rates, which were not chosen."] if lost else []
    lines += _membership(values, stages, kinds) + _cost(values, stages) + _privacy(values)
    return lines


def _membership(values: Values, stages: Sequence[str], kinds: Sequence[str]) -> list[str]:
    checked = valid(values)
    if checked is None:
        return []
    last = [head for head in stages if head != ATTACKED][-1]
    found = ", ".join(f"{kind} {values[last, 'all', kind, 'membership_auc']:.2f}" for kind in kinds
                      if (last, "all", kind, "membership_auc") in values)  # fmt: skip
    word = "can be believed" if checked[0] else "is invalid here"
    return [f"Membership (AUC of the loss, {STAGES[last]} model): {found}. The attack {word}: {checked[1]}."]


def _cost(values: Values, stages: Sequence[str]) -> list[str]:
    losses = [(STAGES[head], loss_of(values, head, "stories")) for head in stages if head != ATTACKED]
    found = ", ".join(f"{loss:.3f} {stage}" for stage, loss in losses if loss is not None)
    return [f"Loss on ordinary text (stories), in nats per token: {found}."] if found else []


def _privacy(values: Values) -> list[str]:
    epsilon = values.get(("model", "all", "all", "epsilon"))
    if epsilon is None:
        return []
    delta, noise = (values.get(("model", "all", "all", name), 0.0) for name in ("delta", "noise_multiplier"))
    return [f"DP-SGD with noise {noise:.2f} gives epsilon {epsilon:.2f} at delta {delta:g} for one row of tokens; who "
            "is told in k rows has k times the epsilon, and a larger delta."]  # fmt: skip


def tables(rows: Sequence[Mapping[str, Any]]) -> list[Titled]:
    """Return what an attacker gets: of each kind of people, by number of copies, and by attribute."""
    values = values_of(rows)
    stages, kinds = stages_of(values), kinds_of(values)
    if not stages:
        return []
    note = (
        "Bits: log2 of the number of values minus log2 of the rank of the true one, added over a person's attributes. "
    )
    note += "Extracted: share of secrets that greedy decoding gives word for word. AUC and true positives at 1 % false "
    note += "positives: telling a person's document from those about people who are in no data, by its loss. Attacked: "
    note += "trained on documents about other people, at the learning rate that was best for the attacker."
    columns = ["people", "model", "bits", "extracted", "AUC", "true positives", "AUC, Min-K%"]
    metrics = ("exposure", "extracted", "membership_auc", "membership_tpr", "membership_auc_min_k")
    people = [*((kind, kind, "all") for kind in kinds), ("in no data", "all", f"{HELDOUT}_all")]
    table = [[name, STAGES[head], *(_shown(values.get((head, region, group, m)), m) for m in metrics)]
             for name, group, region in people for head in stages]  # fmt: skip
    return [
        ("What an attacker gets", columns, table, note),
        _by_region(values, stages, kinds, COPIES, "number of documents"),
        _by_region(values, stages, kinds, ATTRIBUTE, "attribute"),
    ]


def _by_region(values: Values, stages: Sequence[str], kinds: Sequence[str], prefix: str, what: str) -> Titled:
    """Return bits and extraction of each part of the people, or of the attributes, at each stage."""
    regions = [region for region in dict.fromkeys(key[1] for key in values) if region.startswith(prefix)]
    if prefix == COPIES:
        regions.sort(key=lambda region: int(region.removeprefix(prefix)))
    heads = [(head, metric) for metric in ("exposure", "extracted") for head in stages]
    columns = ["people", what, *(f"{'bits' if m == 'exposure' else 'extracted'}, {STAGES[h]}" for h, m in heads)]
    table = [
        [kind, region.removeprefix(prefix), *(_shown(values.get((head, region, kind, m)), m) for head, m in heads)]
        for kind in kinds
        for region in regions
    ]
    sizes = {region: values.get(("model", region, "all", "secret_bits")) for region in regions}
    said = ", ".join(f"{region.removeprefix(prefix)} {bits:.1f}" for region, bits in sizes.items() if bits is not None)
    return f"By {what}", columns, table, f"Bits of all values: {said}." if said else ""


def _shown(value: float | None, metric: str) -> str:
    if value is None:
        return ""
    return f"{value:.0%}" if metric in ("extracted", "membership_tpr") else f"{value:.2f}"
