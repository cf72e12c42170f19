"""Compare methods that keep secrets: what an attacker gets of each in bits and percent, and what each costs."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from gradroute.comparison.language import Setting
from gradroute.records.metrics import ATTACKED
from gradroute.reporting.intervals import interval
from gradroute.reporting.language_tables import Titled
from gradroute.reporting.secrets_tables import COPIES, Values, kinds_of, loss_of, stages_of, valid, values_of

TITLE = "What an attacker gets, and what it costs"
NOBODY = "in no data"
WORDS = {"model": "released", "model_ablated": "released", ATTACKED: "attacked"}


def attacker_table(settings: Sequence[Setting]) -> Titled:
    """Return title, columns, rows and note: for each setting that measured secrets, means over seeds with intervals.

    Two rows for each kind of people: of the model that is given away, which is ablated if an ablation is configured,
    and of the same model after the attack.
    """
    rows, notes = list[list[Any]](), list[str]()
    for method, runs in _measured(settings):
        invalid = sum(not checked[0] for checked in map(valid, runs) if checked is not None)
        notes += [f"In {invalid} of {len(runs)} runs of {method} membership inference is invalid."] * bool(invalid)
        rows += _rows(method, runs)
    columns = ["method", "people", "model", "bits", "extracted", "AUC", "true positives", "loss on stories", "epsilon",
               "n"]  # fmt: skip
    note = f"Bits that the model shows of a person's secrets{_bits(settings)}; extracted: share of secrets that greedy "
    note += (
        "decoding gives; AUC, and true positives at 1 % false positives, of telling members from people who are in no "
    )
    note += (
        "data. Released: after the ablation, if there is one. Attacked: the released model, trained on documents about "
    )
    note += "other people. Loss: nats per token. Mean over n seeds, ± half of the 95 % t-interval."
    return TITLE, columns, rows, " ".join([note, *notes])


def copies_table(settings: Sequence[Setting]) -> Titled:
    """Return title, columns, rows and note: bits and extraction by the number of documents about a person."""
    measured = _measured(settings)
    regions = {key[1] for _, runs in measured for values in runs for key in values if key[1].startswith(COPIES)}
    ordered = sorted(regions, key=lambda region: int(region.removeprefix(COPIES)))
    parts = [
        (metric, region, form) for metric, form in (("exposure", ".1f"), ("extracted", ".0%")) for region in ordered
    ]
    columns = ["method", "people", "model", *(f"{'bits' if metric == 'exposure' else 'extracted'}, "
               f"{region.removeprefix(COPIES)}" for metric, region, _ in parts)]  # fmt: skip
    rows = [
        [method, kind, WORDS[head], *(_shown([v.get((head, region, kind, metric)) for v in runs], form)
                                      for metric, region, form in parts)]
        for method, runs in measured
        for kind in kinds_of(runs[0])
        for head in _heads(runs[0])
    ]  # fmt: skip
    note = (
        f"As above{_bits(settings)}: bits, and the share extracted, of people about whom there are so many documents."
    )
    return "What an attacker gets, by the number of documents about a person", columns, rows, note


def _measured(settings: Sequence[Setting]) -> list[tuple[str, list[Values]]]:
    """Return the runs of each setting that measured secrets."""
    found = [(s.method, [v for read in s.reads if stages_of(v := values_of(read.rows))]) for s in settings]
    return [(method, runs) for method, runs in found if runs]


def _bits(settings: Sequence[Setting]) -> str:
    """Say how many bits a person's secrets have."""
    key = ("model", "all", "all", "secret_bits")
    bits = {values[key] for _, runs in _measured(settings) for values in runs if key in values}
    return f" (of {max(bits):.1f})" if bits else ""


def _heads(values: Values) -> list[str]:
    """Return the stage that is released, and the one that was attacked."""
    stages = stages_of(values)
    released = [head for head in stages if head != ATTACKED][-1:]
    return [*released, *(head for head in stages if head == ATTACKED)]


def _rows(method: str, runs: Sequence[Values]) -> list[list[Any]]:
    found = []
    for kind in [*kinds_of(runs[0]), NOBODY]:
        group, region = ("all", "heldout_all") if kind == NOBODY else (kind, "all")
        for head in _heads(runs[0]):
            measured = [[v.get((head, region, group, metric)) for v in runs]
                        for metric in ("exposure", "extracted", "membership_auc", "membership_tpr")]  # fmt: skip
            losses = [loss_of(v, head, "stories") for v in runs]
            epsilon = [v.get(("model", "all", "all", "epsilon")) for v in runs]
            found.append([
                method, kind, WORDS[head], _shown(measured[0], ".1f"), _shown(measured[1], ".0%"),
                _shown(measured[2], ".2f"), _shown(measured[3], ".0%"), _shown(losses, ".3f"), _shown(epsilon, ".1f"),
                len(runs),
            ])  # fmt: skip
    return found


def _shown(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    half = interval(there)
    return f"{mean(there):{form}}" + ("" if math.isnan(half) else f" ± {half:{form}}")
