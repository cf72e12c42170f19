"""Runs from checked configurations to their folders, one alone or several in lockstep."""

from collections.abc import Sequence
from pathlib import Path

import torch

from gradroute import folders
from gradroute.errors import UserError
from gradroute.run import Run
from gradroute.schema import Config
from gradroute.setup import settle_precision
from gradroute.stacking import together
from gradroute.training import Fit

Outcome = Path | Exception


def _advance(runs: list[Run], step: str) -> dict[Run, FloatingPointError]:
    """One step of every run, tasks in lockstep; returns the runs that diverged, which did not end it."""
    failed: dict[Run, FloatingPointError] = {}
    made = {run: iter(getattr(run, step)()) for run in runs}
    while made:
        tasks = {run: task for run, steps in made.items() if (task := next(steps, None)) is not None}
        if not tasks:
            break
        fit = Fit(list(tasks.values()), runs[0].setup.precision, runs[0].setup.device)
        with runs[0].progress.running(fit.tasks[0].title):
            fit.run()
        failed |= {list(tasks)[number]: error for number, error in fit.failed.items()}
        made = {run: steps for run, steps in made.items() if run in tasks and run not in failed}
    return failed


def _out_of_memory(error: Exception, config: Config, stacked: int) -> Exception:
    """A lack of memory as a line that names what to lower; any other error as it is."""
    if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in str(error):
        return error
    lower = f"stack (now {stacked})" if stacked > 1 else "model.hidden"
    return UserError(f"out of memory: lower trainer.batch_size (now {config.trainer.batch_size}) or {lower}")


def _steps(runs: list[Run]) -> None:
    """Every step of runs of one shape; what befalls one does not stop the others."""
    going, together = list(runs), len(runs)
    try:
        for step in runs[0].config.steps:
            for run in going:
                run.folder.log(f"step {step}")
            for run, fault in _advance(going, step).items():
                run.end(fault)
            going = [run for run in going if run.error is None]
    except BaseException as error:
        said = _out_of_memory(error, runs[0].config, together) if isinstance(error, Exception) else error
        for run in going:
            run.end(said)
        if not isinstance(said, Exception):
            raise
    else:
        for run in going:
            run.end()


def _run_together(configs: Sequence[Config]) -> list[Outcome]:
    """Runs of one shape in lockstep, from their configurations to their folders."""
    outcomes: list[Run | Exception] = []
    runs: list[Run] = []
    for config in configs:
        try:
            run = Run(config, runs[0].setup.data if runs else None, len(configs), quiet=bool(runs))
            runs.append(run)
            outcomes.append(run)
        except Exception as error:
            outcomes.append(_out_of_memory(error, config, len(configs)))
    if runs:
        _steps(runs)
    return [o if isinstance(o, Exception) else o.error or o.folder.path for o in outcomes]


def execute(configs: Sequence[Config], reuse: bool = False) -> list[Outcome]:
    """Run checked configurations' steps; returns each one's folder, or why there is no finished one.

    Those that can be are trained together, as `stack` says. With `reuse`, a finished run of the same configuration and
    version is returned instead, if there is one.
    """
    outcomes: dict[int, Outcome] = {}
    device = "cpu"
    for number, config in enumerate(configs):
        try:
            device = settle_precision(config)[0].type
            if reuse and (done := folders.finished_twin(config)):
                print(f"already finished: {done}")
                outcomes[number] = done
        except UserError as error:
            outcomes[number] = error
    todo = {id(config): number for number, config in enumerate(configs) if number not in outcomes}
    for stack in together([config for config in configs if id(config) in todo], device):
        made = _run_together(stack)
        outcomes |= {todo[id(config)]: outcome for config, outcome in zip(stack, made, strict=True)}
    return [outcomes[number] for number in range(len(configs))]
