"""Audit finished runs, pool audits over seeds, and compare verdicts with stored ones."""

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gradroute.audit.record import pooled
from gradroute.audit.verdict import worse
from gradroute.config.build import from_mapping
from gradroute.config.components import step_names, training_steps, with_steps
from gradroute.config.identity import to_mapping
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import run_reader
from gradroute.records.audits import RANK, read_audit, words
from gradroute.records.safe_reading import read_json
from gradroute.running.runner import execute


@dataclass(frozen=True)
class Request:
    """What to audit, and what to compare with.

    options: keys of the step `audit` with their values, such as `{"group": "forget"}`; of runs with a record already,
        the record counts. output: where new audits are written; null is beside the run. baseline: a record of an audit,
        or what this command wrote. against: another run, whose verdicts count as the stored ones.
    """

    runs: Sequence[Path]
    options: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    baseline: Path | None = None
    against: Path | None = None
    run_code: bool = False


def config_of(run: Path, request: Request) -> Config:
    """Return the configuration that reuses a run's training and audits its ablated model. Raises: UserError."""
    output = run.parent.parent if request.output is None else request.output
    config = run_reader.read_rerun(run, ["output_dir"], request.run_code)
    options = {**(config.audit or {}), **request.options}
    if "group" not in options:
        routed = list(config.routing.routes)
        if len(routed) != 1:
            right = f"give --group, one of {', '.join(config.routing.groups)}"
            raise UserError(f"{run}: which group's knowledge is to be audited cannot be told from its routes; {right}")
        options["group"] = routed[0]
    certified = ["certify"] if "certify" in step_names(config) else []
    steps = [*training_steps(config), *certified, "ablate", "audit", "evaluate", "report"]
    changed = to_mapping(with_steps(config, steps)) | {
        "audit": options, "output_dir": str(output), "trained": str(run), "name": f"{config.name}_audit"[:64],
        "completions": None,
    }  # fmt: skip
    return from_mapping(changed)


def audited(run: Path, request: Request) -> tuple[Path, dict[str, Any]]:
    """Return the folder and the record of a run's audit: its own, or that of a new run that reuses its training.

    Raises: UserError, or the error that ended the audit.
    """
    manifest = run_reader.read_manifest(run)
    found = read_audit(run, manifest)
    if found is not None:
        return run, found
    config = config_of(run, request)
    with contextlib.redirect_stdout(sys.stderr):  # stdout has the result only
        (outcome,) = execute([config], reuse=True, watch=lambda step, rows: None)
    if isinstance(outcome, Exception):
        raise outcome
    made = read_audit(outcome, run_reader.read_manifest(outcome))
    assert made is not None  # the step has written it
    return outcome, made


def stored(path: Path) -> dict[str, str | None]:
    """Return the verdict of each axis in a record of an audit, or in a line of this command. Raises: UserError."""
    try:
        found = read_json(path.read_bytes(), path)
    except OSError as error:
        raise UserError(f"--baseline {path}: cannot be read ({error.strerror})") from None
    try:
        own = words(found) if "axes" in found else dict(found["verdicts"])
    except (KeyError, TypeError, ValueError, AttributeError):
        own = {}
    if not own or not all(word in RANK for word in own.values()):
        raise UserError(f"--baseline {path}: has no verdicts; give an audit.json, or what gradroute-audit printed")
    return own


def audit(request: Request) -> tuple[dict[str, Any], list[str]]:
    """Audit runs; return one line for a monitor, and sentences. Raises: UserError."""
    made = [audited(run, request) for run in request.runs]
    records = [found for _, found in made]
    verdicts, sentences, power = pooled(records)
    before: dict[str, str | None] = {}
    if request.baseline is not None:
        before |= stored(request.baseline)
    if request.against is not None:
        before |= words(audited(request.against, request)[1])
    now = {axis: own.word for axis, own in verdicts.items()}
    line = {
        "experiment": records[0]["experiment"],
        "group": records[0]["group"],
        "seeds": [found["seed"] for found in records],
        "audits": [str(folder) for folder, _ in made],
        "power": power,
        "missing": sorted({name for found in records for name in found["missing"]}),
        "verdicts": now,
        "recovered_share": {axis: round(own.mean, 4) if own.mean == own.mean else None
                            for axis, own in verdicts.items()},
        "worse": worse(now, before),
    }  # fmt: skip
    return line, sentences


def as_line(line: Mapping[str, Any]) -> str:
    """Return one line of JSON."""
    return json.dumps(line)
