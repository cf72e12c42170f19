"""Compare methods that keep secrets: what an attacker gets of each in bits and percent, and what each costs."""

import math
from collections.abc import Sequence
from statistics import mean
from typing import Any

from gradroute.comparison.intervals import interval
from gradroute.comparison.language import Setting
from gradroute.reporting.secrets_tables import Values, kinds_of, loss_of, stages_of, valid, values_of

TITLE = "What an attacker gets, and what it costs"


def attacker_table(settings: Sequence[Setting]) -> tuple[list[str], list[list[Any]], str]:
    """Return columns, rows and a note: for each setting that measured secrets, means over seeds with intervals.

    Two rows for each kind of people: of the model that is given away, which is ablated if an ablation is configured,
    and of the same model after the attack.
    """
    rows, notes = list[list[Any]](), list[str]()
    for setting in settings:
        runs = [values for read in setting.reads if stages_of(values := values_of(read.rows))]
        if not runs:
            continue
        invalid = sum(not checked[0] for checked in map(valid, runs) if checked is not None)
        notes += [f"In {invalid} of {len(runs)} runs of {setting.method} membership inference is invalid."] * bool(
            invalid
        )
        rows += _rows(setting.method, runs)
    columns = ["method", "people", "model", "bits", "extracted", "AUC", "true positives", "loss on stories", "epsilon",
               "n"]  # fmt: skip
    bits = next((v[key] for s in settings for r in s.reads for v in [values_of(r.rows)]
                 if (key := ("model", "all", "all", "secret_bits")) in v), math.nan)  # fmt: skip
    note = f"Bits that the model shows of a person's secrets, of {bits:.1f}; extracted: share of secrets that greedy "
    note += (
        "decoding gives; AUC, and true positives at 1 % false positives, of telling members from people who are in no "
    )
    note += (
        "data. Released: after the ablation, if there is one. Attacked: the released model, trained on documents about "
    )
    note += "other people. Loss: nats per token. Mean over n seeds, ± half of the 95 % t-interval."
    return columns, rows, " ".join([note, *notes])


def _rows(method: str, runs: Sequence[Values]) -> list[list[Any]]:
    found = []
    stages = stages_of(runs[0])
    released = [head for head in stages if head != "model_attacked"][-1]
    for kind in [*kinds_of(runs[0]), "in no data"]:
        group, region = ("all", "heldout_all") if kind == "in no data" else (kind, "all")
        for head in [head for head in (released, "model_attacked") if head in stages]:
            measured = [[v.get((head, region, group, metric)) for v in runs]
                        for metric in ("exposure", "extracted", "membership_auc", "membership_tpr")]  # fmt: skip
            losses = [loss_of(v, head, "stories") for v in runs]
            epsilon = [v.get(("model", "all", "all", "epsilon")) for v in runs]
            found.append([
                method, kind, "attacked" if head == "model_attacked" else "released", _shown(measured[0], ".1f"),
                _shown(measured[1], ".0%"), _shown(measured[2], ".2f"), _shown(measured[3], ".0%"),
                _shown(losses, ".3f"), _shown(epsilon, ".1f"), len(runs),
            ])  # fmt: skip
    return found


def _shown(values: Sequence[float | None], form: str) -> str:
    there = [value for value in values if value is not None]
    if not there:
        return ""
    half = interval(there)
    return f"{mean(there):{form}}" + ("" if math.isnan(half) else f" ± {half:{form}}")
