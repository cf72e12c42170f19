"""Make the steps of one run, or of several in lockstep."""

import errno
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gradroute.config.doors import TARGET
from gradroute.config.schema import Config
from gradroute.config.targets import locate
from gradroute.errors import MachineError, UserError
from gradroute.running import processes
from gradroute.running.run import Run
from gradroute.tasks.stacked_evaluation import measured_together
from gradroute.training import distributed, memory, signals
from gradroute.training.fit import Fit
from gradroute.training.training import Training

UNWRITABLE = (
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOENT, errno.EIO,
    errno.ESTALE,
)  # fmt: skip


class Checkpointer:
    """Saves checkpoints of runs in training, every few minutes and when a signal arrives."""

    def __init__(self, runs: Sequence[Run], fit: Fit) -> None:
        self.runs, self.fit = runs, fit
        self.every = 60 * min(run.config.checkpoint.minutes for run in runs)
        self.due = time.monotonic() + self.every

    def after_update(self) -> None:
        """Write checkpoints if they are due or a signal came, and those that stay; after a signal, end."""
        if any(run.keeps(self.fit.step, self.fit.steps) for run in self.runs):
            self._save(stays=True)
        if signals.asked() or time.monotonic() >= self.due:
            self._save()
            signals.end()
            self.due = time.monotonic() + self.every

    def _save(self, stays: bool = False) -> None:
        self.fit.check_parameters()
        for number, (run, state) in enumerate(zip(self.runs, self.fit.states(), strict=True)):
            if number not in self.fit.failed and (not stays or run.keeps(self.fit.step, self.fit.steps)):
                try:
                    (run.keep_checkpoint if stays else run.checkpoint)(state)
                except OSError as error:
                    self.fit.fail(number, error)


def _train(trainings: dict[Run, Training]) -> dict[Run, Exception]:
    """Make one training of every run, from its checkpoint if it is resumed; return the errors of those that failed.

    Gradients and the optimizer's state are freed: the next training would find them beside its own.
    """
    runs = list(trainings)
    memory.keep_freed()
    first, exact = runs[0], runs[0].folder.manifest.get("exact")
    fit = Fit(list(trainings.values()), first.config.trainer.precision, first.task.device)
    fit.exact, fit.log = exact if isinstance(exact, bool) else None, first.progress.say
    fit.measuring = partial(_measured_together, runs)
    keeper = Checkpointer(runs, fit)
    with signals.held():
        if runs[0].fit is not None:
            fit.load_states([run.fit for run in runs if run.fit is not None])
        with runs[0].progress.running(fit.trainings[0].title):
            _fit(fit, keeper.after_update)
        if signals.asked():
            keeper.after_update()
    for run in runs:
        run.fit, run.trainings_done = None, run.trainings_done + 1
        run.folder.manifest["exact"] = fit.exact
    for training in trainings.values():
        training.objective.zero_grad()
    return {runs[number]: error for number, error in fit.failed.items() if not _told(fit.trainings[number], error)}


def _measured_together(runs: Sequence[Run]) -> AbstractContextManager[None]:
    return measured_together([run.task for run in runs], [run.ablations for run in runs])


def _fit(fit: Fit, after_update: Callable[[], None]) -> None:
    """Train to the end. Raises: the first training's error if all have failed, unless it may diverge."""
    try:
        fit.run(after_update)
    except FloatingPointError:
        if fit.trainings[0].diverged is None:
            raise


def _told(training: Training, error: Exception) -> bool:
    """Tell a training that may diverge that it has; return whether that was the error."""
    if training.diverged is None or not isinstance(error, FloatingPointError):
        return False
    training.diverged(error)
    return True


def advance(runs: list[Run], step: str) -> dict[Run, Exception]:
    """Make one step of every run, trainings in lockstep; return the errors of runs that failed without the others.

    A step of many runs that needs their folders alone is made in several processes.
    """
    failed: dict[Run, Exception] = {}
    made: dict[Run, Iterator[Training]] = {}

    def begin(run: Run) -> Iterator[Training]:
        return iter(run.steps[step].run(run))

    def next_training(run: Run) -> Training | None:
        return next(made[run], None)

    def each(runs: Iterable[Run], action: Callable[[Run], Any]) -> dict[Run, Any]:
        results = {}
        for run in runs:
            try:
                results[run] = action(run)
            except Exception as error:
                failed[run] = error
        return results

    calls = each(runs, lambda run: run.steps[step].apart(run)) if processes.worth(len(runs)) else {}
    if calls and all(call is not None for call in calls.values()):
        failed |= processes.errors(calls)
    else:
        going = [run for run in runs if run not in failed]
        with _measured_together(going) if runs[0].steps[step].only_measures else nullcontext():
            made |= each(going, begin)
    while made:
        found = each(list(made), next_training)
        trainings = {run: training for run, training in found.items() if training is not None}
        if trainings:
            failed |= _train(trainings)
        for run in [run for run in made if run not in trainings or run in failed]:
            del made[run]
        del found, trainings  # they hold models, of which the steps make further ones now
    with signals.held():
        each([run for run in runs if run not in failed], lambda run: run.end_step(step))
    return failed


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that the machine or the GPU has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def explained(error: Exception, run: Path | None, config: Config, stacked: int) -> Exception:
    """Return an error that says what to do about memory, lost processes or an unwritable folder; else the same one."""
    if out_of_memory(error):
        other = locate(config.task[TARGET], "task").when_out_of_memory(config, stacked)
        return MachineError(f"out of memory: lower trainer.batch_size (now {config.trainer.batch_size}) or {other}")
    if distributed.lost(error):
        minutes = distributed.TIMEOUT.total_seconds() / 60
        fault = f"torchrun: another process is gone, or has not answered for {minutes:g} minutes"
        return MachineError(f"{fault}; see its own message, and resume the run with resume={run}")
    if run is not None and isinstance(error, OSError) and error.errno in UNWRITABLE:
        what = error.strerror if run.is_dir() else "the folder is gone"
        then = f"when it can, use gradroute-run resume={run}" if run.is_dir() else "let only one process use it"
        return UserError(f"{run}: cannot be written ({what}); {then}")
    return error


class TooLarge(Exception):
    """Raised where a stack of several runs is out of memory; the runs have not ended, and can go on in smaller ones."""


def make_steps(runs: list[Run]) -> None:
    """Make every step of runs of one shape; a run that fails does not stop the others.

    Raises: TooLarge if several runs together are out of memory.
    """
    going, together = list(runs), len(runs)
    try:
        for step in [step for step in runs[0].steps if step not in runs[0].done]:
            for run in going:
                run.folder.log(f"step {step}")
            failed = advance(going, step)
            if len(going) > 1 and any(map(out_of_memory, failed.values())):
                raise TooLarge
            for run, error in failed.items():
                run.end(explained(error, run.folder.path, run.config, together))
            going = [run for run in going if run.error is None]
        for run in going:
            run.end()
    except BaseException as error:
        if isinstance(error, TooLarge) or (len(going) > 1 and out_of_memory(error)):
            raise TooLarge from None
        for run in going:
            run.end(explained(error, run.folder.path, run.config, together) if isinstance(error, Exception) else error)
        if not isinstance(error, Exception):
            raise
