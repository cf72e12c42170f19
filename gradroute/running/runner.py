"""Runs from checked configurations to their folders, one alone or several in lockstep."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gradroute.config.schema import Config
from gradroute.config.typed import differences
from gradroute.errors import MachineError, UserError
from gradroute.records import checkpoints, run_reader
from gradroute.records.checkpoints import Checkpoint
from gradroute.running.run import Run, Watch
from gradroute.tasks.base import settle_precision
from gradroute.training import distributed, signals
from gradroute.training.fit import Fit, Task
from gradroute.training.stacking import together

Outcome = Path | Exception
UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO,
    errno.ESTALE,
)  # fmt: skip


@dataclass(frozen=True)
class _Plan:
    """A run to make: anew, or in the folder of one that was interrupted, from a checkpoint if it has one."""

    config: Config
    folder: Path | None = None
    checkpoint: Checkpoint | None = None


class _Keeper:
    """Looks on while runs are trained, and keeps them every few minutes and when a signal came."""

    def __init__(self, runs: Sequence[Run], fit: Fit) -> None:
        self.runs, self.fit = runs, fit
        self.every = 60 * min(run.config.checkpoint.minutes for run in runs)
        self.due = time.monotonic() + self.every

    def after_update(self) -> None:
        """Write checkpoints if it is time to, and end if a signal came."""
        if not signals.asked() and time.monotonic() < self.due:
            return
        self.fit.check_parameters()
        for number, (run, state) in enumerate(zip(self.runs, self.fit.states(), strict=True)):
            if number not in self.fit.failed:
                try:
                    run.checkpoint(state)
                except OSError as error:
                    self.fit.fail(number, error)
        signals.end()
        self.due = time.monotonic() + self.every


def _train(runs: Sequence[Run], fit: Fit) -> None:
    """One task of every run, from where it was."""
    keeper = _Keeper(runs, fit)
    with signals.held():
        if runs[0].fit is not None:
            fit.load_states([run.fit for run in runs if run.fit is not None])
        with runs[0].progress.running(fit.tasks[0].title):
            fit.run(keeper.after_update)
        if signals.asked():
            keeper.after_update()
    for run in runs:
        run.fit, run.tasks_done = None, run.tasks_done + 1


def _advance(runs: list[Run], step: str) -> dict[Run, Exception]:
    """One step of every run, tasks in lockstep; returns the runs that failed alone, which did not end it."""
    failed: dict[Run, Exception] = {}
    made: dict[Run, Iterator[Task]] = {}

    def begin(run: Run) -> Iterator[Task]:
        return iter(getattr(run, step)())

    def next_task(run: Run) -> Task | None:
        return next(made[run], None)

    def each(runs: Iterable[Run], action: Callable[[Run], Any]) -> dict[Run, Any]:
        results = {}
        for run in runs:
            try:
                results[run] = action(run)
            except Exception as error:
                failed[run] = error
        return results

    made |= each(runs, begin)
    while made:
        tasks = {run: task for run, task in each(list(made), next_task).items() if task is not None}
        if tasks:
            fit = Fit(list(tasks.values()), runs[0].config.trainer.precision, runs[0].problem.device)
            _train(list(tasks), fit)
            failed |= {list(tasks)[number]: error for number, error in fit.failed.items()}
        for run in [run for run in made if run not in tasks or run in failed]:
            del made[run]
    with signals.held():
        each([run for run in runs if run not in failed], lambda run: run.end_step(step))
    return failed


def _said(error: Exception, run: Path | None, config: Config, stacked: int) -> Exception:
    """A lack of memory, or a folder that cannot be written, in a line that says what to do; else the error as it is."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error):
        other = f"lower stack (now {stacked})" if stacked > 1 else "lower model.hidden"
        if config.dataset.text is not None:
            other = f"raise trainer.accumulate (now {config.trainer.accumulate})"
        elif stacked == 1 and config.model.resnet is not None:
            other = "lower model.resnet.width"
        return MachineError(f"out of memory: lower trainer.batch_size (now {config.trainer.batch_size}) or {other}")
    if run is not None and isinstance(error, OSError) and error.errno in UNWRITABLE:
        what = error.strerror if run.is_dir() else "the folder is gone"
        then = f"then gradroute-run resume={run} goes on" if run.is_dir() else "give it to one process only"
        return UserError(f"{run}: cannot be written ({what}); {then}")
    return error


def _steps(runs: list[Run]) -> None:
    """Every step of runs of one shape; what befalls one does not stop the others."""
    going, together = list(runs), len(runs)
    try:
        for step in [step for step in runs[0].config.steps if step not in runs[0].done]:
            for run in going:
                run.folder.log(f"step {step}")
            for run, error in _advance(going, step).items():
                run.end(_said(error, run.folder.path, run.config, together))
            going = [run for run in going if run.error is None]
        for run in going:
            run.end()
    except BaseException as error:
        for run in going:
            run.end(_said(error, run.folder.path, run.config, together) if isinstance(error, Exception) else error)
        if not isinstance(error, Exception):
            raise


def _run_together(plans: Sequence[_Plan], watch: Watch | None) -> list[Outcome]:
    """Runs of one shape in lockstep, from their configurations to their folders."""
    outcomes: list[Run | Exception] = []
    runs: list[Run] = []
    for plan in plans:
        try:
            data = runs[0].problem.data if runs else None
            quiet = bool(runs) or watch is not None
            run = Run(plan.config, data, len(plans), quiet, plan.folder, plan.checkpoint, watch=watch)
            at = plan.checkpoint.name if plan.checkpoint else None
            distributed.tell({"folder": str(run.folder.path), "checkpoint": at} if run.trains else None)
            runs.append(run)
            outcomes.append(run)
        except Exception as error:
            outcomes.append(_said(error, plan.folder, plan.config, len(plans)))
    if runs:
        _steps(runs)
    return [o if isinstance(o, Exception) else o.error or o.folder.path for o in outcomes]


def _help(config: Config) -> None:
    """Train with the process that leads, and end when that is done."""
    told = distributed.hear()
    if told is not None:
        folder = Path(told["folder"])
        checkpoint = Checkpoint(folder, told["checkpoint"], "") if told["checkpoint"] else None
        run = Run(config, quiet=True, folder=folder, checkpoint=checkpoint, helps=True)
        for step in config.steps[len(run.done) : config.steps.index("train") + 1]:
            for error in _advance([run], step).values():
                raise error
    raise SystemExit


def _resumed(config: Config, folder: Path) -> _Plan | Path:
    """How to go on with a run. Raises: UserError if it is of another configuration, or no checkpoint is whole."""
    manifest = run_reader.read_manifest(folder)
    if keys := differences(run_reader.read_config(folder, manifest), config):
        right = f"leave {'them' if len(keys) > 1 else 'it'} out, or begin another run with rerun={folder}"
        raise UserError(f"{folder}: cannot go on with another {', '.join(keys)}; {right}")
    if manifest["state"] == "finished":
        print(f"already finished: {folder}")
        return folder
    return _Plan(config, folder, checkpoints.newest(folder))


def _plan(config: Config) -> _Plan | Path:
    """What there is to do for a run that a sweep asks for: nothing if it is there, finished."""
    found = run_reader.twin(config)
    if found is None:
        return _Plan(config)
    folder, finished = found
    if finished:
        print(f"already finished: {folder}")
        return folder
    try:
        checkpoint = checkpoints.newest(folder)
    except UserError as error:
        print(f"starts again: {error}")
        checkpoint = None
    print(f"goes on: {folder}")
    return _Plan(config, folder, checkpoint)


def _execute(configs: Sequence[Config], reuse: bool, folder: Path | None, watch: Watch | None) -> list[Outcome]:
    outcomes: dict[int, Outcome] = {}
    plans: dict[int, _Plan] = {}
    device = "cpu"
    for number, config in enumerate(configs):
        try:
            device = settle_precision(config).type
            plan = _resumed(config, folder) if folder else _plan(config) if reuse else _Plan(config)
        except UserError as error:
            outcomes[number] = error
            continue
        if isinstance(plan, Path):
            outcomes[number] = plan
        else:
            plans[number] = plan
    numbers = {id(plan.config): number for number, plan in plans.items()}

    def position(config: Config) -> str:
        checkpoint = plans[numbers[id(config)]].checkpoint
        return checkpoint.position if checkpoint else ""

    for stack in together([plan.config for plan in plans.values()], device, position):
        own = [numbers[id(config)] for config in stack]
        outcomes |= zip(own, _run_together([plans[number] for number in own], watch), strict=True)
    return [outcomes[number] for number in range(len(configs))]


def execute(
    configs: Sequence[Config], reuse: bool = False, folder: Path | None = None, watch: Watch | None = None
) -> list[Outcome]:
    """Run checked configurations' steps; returns each one's folder, or why there is no finished one.

    Those that can be are trained together, as `stack` says. With `reuse`, a run of the same configuration and version
    is not made again: it is returned if it is finished, and gone on with if it was interrupted. With `folder`, that of
    an interrupted run, its only configuration is gone on with there. `watch` looks on instead of
    the terminal, and may raise `Pruned`.
    """
    with signals.heard(), distributed.joined():
        if distributed.size() > 1:
            distributed.require_one(configs)
        if distributed.rank():
            _help(configs[0])
        return _execute(configs, reuse, folder, watch)
