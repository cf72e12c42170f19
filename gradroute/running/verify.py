"""Check a finished run: its files, the ledger's claims, and its metrics, recomputed from the weights."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.config.components import step_names, steps_of
from gradroute.errors import UserError, plain_text
from gradroute.records import run_reader
from gradroute.records.audits import read_audit, words
from gradroute.records.metrics import ERRORS, UNKEPT, final_rows
from gradroute.records.tables import read_ledger, read_metrics
from gradroute.running.claims import Claim
from gradroute.running.ledger_claims import ledger_claims
from gradroute.running.signatures import SIGNATURE, sign, signature_claim

if TYPE_CHECKING:
    from gradroute.tasks.base import Task

SHARES = ("accuracy", "rate_triggered", "rate_plain")  # of data points
TOLERANCE = 1e-3  # relative, of a recomputed metric: the order of sums depends on the processor


def file_claims(run: Path, manifest: dict[str, Any]) -> Iterator[Claim]:
    """Check that every file has the checksum in the manifest, and that no file was added."""
    listed = manifest["files"]
    damaged = []
    for name in listed:
        try:
            run_reader.check_files(run, manifest, [name])
        except UserError as error:
            damaged.append(str(error))
    present = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_symlink() or not p.is_dir()}
    present -= {"manifest.json", SIGNATURE}
    added = sorted(present - set(listed))
    found = "; ".join(damaged) or f"{len(listed)} files agree"
    yield Claim("every file has the checksum in the manifest", bool(listed) and not damaged, found)
    yield Claim("no file was added", not added, ", ".join(added) or "none")


def _difference(metric: str, one: float, other: float) -> float:
    """Return the relative difference; of shares, a tenth of the difference, because close calls may change."""
    if math.isnan(one) or math.isnan(other):
        return math.inf
    return abs(one - other) / (10 if metric in SHARES else max(abs(other), 1e-12))


def metric_claims(task: "Task", run: Path) -> Iterator[Claim]:
    """Check that the run's weights reproduce its test metrics."""
    import torch

    from gradroute.training.weights import read_weights

    config = task.config
    for name in task.expected():
        task.make(name)
    read_weights(run, task.modules())
    with torch.no_grad():
        measured = list(task.measure(task.ablations() if "ablate" in step_names(config) else []))
        measured += [each for step in steps_of(config) for each in step.measured(task)]
    checked = (*ERRORS, *task.units())
    final = final_rows(read_metrics(run))
    kept = [row for row in final if row["metric"] in checked and not row["head"].startswith(UNKEPT)]
    again = {
        (group, head.name, head.region, metric): value for group, head, metric, value in measured if metric in checked
    }
    heads = {key[1:3] for key in again}
    recorded = {(r["group"], r["head"], r["region"], r["metric"]): r["value"] for r in kept
                if (r["head"], r["region"]) in heads or r["metric"] in ERRORS}  # fmt: skip
    for head, region in dict.fromkeys((head, region) for _, head, region, _ in [*again, *recorded]):
        keys = [key for key in {**again, **recorded} if key[1:3] == (head, region)]
        pairs = [(recorded.get(key, math.nan), again.get(key, math.nan)) for key in keys]
        worst = max(_difference(key[3], *pair) for key, pair in zip(keys, pairs, strict=True))
        what = f"the errors of {head}, region {region}, are reproduced by its weights"
        yield Claim(what, worst <= TOLERANCE, f"{len(pairs)} values, largest relative difference {worst:.1e}")


def present(task: "Task") -> set[str]:
    """Return the groups that have data points in the training; none if a batch makes its own data."""
    numbers = [] if task.source is not None else task.routed.unique().tolist()
    return {task.names[number] for number in numbers if number >= 0}


def claims_of(run: Path, run_code: bool = False, replay: int | str = 0) -> Iterator[Claim]:
    """Yield every claim of a finished run, checked.

    replay: how many windows of the training to make again besides the first, or `all`; 0 makes none.

    Raises: UserError if it is not a finished run, or if it names code and `run_code` is false.
    """
    manifest = run_reader.read_manifest(run)
    if manifest["state"] != "finished":
        raise UserError(f"{run}: the run is not finished (state: {run_reader.state(run, manifest)})")
    yield from file_claims(run, manifest)
    config = run_reader.read_config(run, run_code=run_code, consent="--run-code")
    if not run_code:
        run_reader.refuse_code(run, run_reader.predicates(config), "--run-code")
    from gradroute.tasks.base import create

    config.trainer.device = "cpu"
    task = create(config, run=run)
    same = task.sha256 == manifest.get("dataset_sha256")
    yield Claim("the data are those of the run", same, task.sha256[:12])
    if config.ledger.enabled:
        yield from ledger_claims(config, read_ledger(run), task.memberships, present(task))
    else:
        yield Claim("the run has a ledger", False, "ledger.enabled=false: nothing proves its routes")
    if "evaluate" in step_names(config) and config.checkpoint.keep == "none":
        yield Claim("the metrics are reproduced by the weights", False, "checkpoint.keep=none: the run kept no weights")
    elif "evaluate" in step_names(config):
        yield from metric_claims(task, run)
    if (found := read_audit(run, manifest)) is not None:
        from gradroute.audit.record import rejudged

        same = rejudged(found) == words(found)
        yield Claim("the audit's verdicts follow from the shares in its record", same, f"{len(found['axes'])} axes")
    if replay:
        from gradroute.running.replay_claims import replay_claims

        yield from replay_claims(run, manifest, config, None if replay == "all" else int(replay))


@dataclass(frozen=True)
class Request:
    """What to check of a run besides its files, ledger and metrics.

    run_code: run code that the folder names. replay: see `claims_of`. signers: a file of who may have signed it.
    sign: an SSH key that signs the manifest if all claims hold.
    """

    run_code: bool = False
    replay: int | str = 0
    signers: Path | None = None
    sign: Path | None = None


def verify(run: Path, request: Request | None = None) -> bool:
    """Check a run and print a table of its claims; return whether all hold.

    Raises: UserError if it is not a run, or if a key or a file of signers cannot be used.
    """
    from rich.markup import escape
    from rich.table import Table

    from gradroute.reporting.terminal import terminal

    request = request or Request()
    claims = list(claims_of(run, request.run_code, request.replay))
    if request.signers:
        claims.append(signature_claim(run, request.signers))
    table = Table(title=escape(plain_text(run)))
    for title in ("claim", "", "found"):
        table.add_column(title, overflow="fold")
    for claim in claims:
        ends = "[green]pass[/]" if claim.holds else "[bold red]FAIL[/]"
        table.add_row(escape(plain_text(claim.what)), ends, escape(plain_text(claim.found)))
    console = terminal(160)
    console.print(table)
    failed = sum(not claim.holds for claim in claims)
    console.print(f"{len(claims) - failed} of {len(claims)} claims hold")
    if request.sign and not failed:
        sign(run, request.sign)
        console.print("the manifest is signed")
    return not failed
