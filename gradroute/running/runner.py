"""Make runs from checked configurations: alone or stacked, new or resumed; reuse those that are finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from gradroute.config.identity import differences, to_mapping
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import checkpoints, run_reader
from gradroute.records.checkpoints import Checkpoint
from gradroute.running.lockstep import TooLarge, advance, explained, make_steps
from gradroute.running.run import Run
from gradroute.steps.base import Watch
from gradroute.tasks.image_checks import indivisible
from gradroute.training import distributed, memory, signals
from gradroute.training.devices import settle_precision
from gradroute.training.stacking import together

Outcome = Path | Exception


@dataclass(frozen=True)
class _Plan:
    """A run to make: a new one, or an interrupted one to resume in its folder, from a checkpoint if it has one."""

    config: Config
    folder: Path | None = None
    checkpoint: Checkpoint | None = None


def _run_together(plans: Sequence[_Plan], watch: Watch | None) -> list[Outcome]:
    """Make runs of one shape in lockstep; return the folder or error of each."""
    outcomes: list[Run | Exception] = []
    runs: list[Run] = []
    room = len(plans)
    for plan in plans:
        if len(outcomes) == room:
            break
        try:
            data = runs[0].task.read if runs else None
            quiet = bool(runs) or watch is not None
            run = Run(plan.config, data, len(plans), quiet, plan.folder, plan.checkpoint, watch=watch)
            at = plan.checkpoint.name if plan.checkpoint else None
            distributed.tell({"folder": str(run.folder.path), "checkpoint": at} if run.trains else None)
            runs.append(run)
            outcomes.append(run)
            if len(runs) == 1 and len(plans) > 1 and plan.config.stack == "auto":
                room = _room(run, len(plans))
        except Exception as error:
            outcomes.append(explained(error, plan.folder, plan.config, len(plans)))
    later, again = plans[len(outcomes) :], dict[int, _Plan]()
    try:
        if runs:
            make_steps(runs)
    except TooLarge:
        again = _paused(outcomes)
    ended = [o if isinstance(o, Exception) else o.error or o.folder.path for o in outcomes]
    runs.clear()
    outcomes.clear()
    made = _in_halves(again, ended, watch) if again else ended
    return [*made, *(_run_together(later, watch) if later else [])]


def _room(run: Run, wanted: int) -> int:
    """Return how many runs like this one to train at once, at most `wanted`, by the free memory; and say it."""
    task, rows = run.task, min(run.config.trainer.batch_size, run.task.points)
    numbers = memory.parameter_numbers(*task.modules().values())
    each = memory.FLOAT * (
        memory.COPIES * numbers + 2 * rows * memory.activation_numbers(task.model, task.example()[:1])
    )
    room, free = memory.runs_that_fit(each, task.device)
    count = min(wanted, room)
    run.progress.say(
        f"stack=auto: {count} runs at once, of about {each / 2**20:,.0f} MiB each; {free / 2**30:,.1f} GiB are free"
    )
    return count


def _paused(outcomes: Sequence[Run | Exception]) -> dict[int, _Plan]:
    """Pause the runs of a stack that was out of memory; return how to go on with each, from its last checkpoint."""
    going = {number: run for number, run in enumerate(outcomes) if isinstance(run, Run) and run.error is None}
    print(f"out of memory: goes on with stacks of {-(-len(going) // 2)} runs instead of {len(going)}")
    for run in going.values():
        run.folder.log(f"out of memory in a stack of {len(going)}: goes on in a smaller one")
        run.pause()
    return {
        number: _Plan(run.config, run.folder.path, checkpoints.newest(run.folder.path)) for number, run in going.items()
    }


def _in_halves(again: Mapping[int, _Plan], ended: list[Outcome], watch: Watch | None) -> list[Outcome]:
    """Make the paused runs of a stack in two smaller ones, those at one update together; return all outcomes."""
    memory.release()
    numbers = sorted(again, key=lambda number: _position(again[number]))
    half = -(-len(numbers) // 2)
    for part in (numbers[:half], numbers[half:]):
        for at in dict.fromkeys(_position(again[number]) for number in part):
            own = [number for number in part if _position(again[number]) == at]
            for number, outcome in zip(own, _run_together([again[n] for n in own], watch), strict=True):
                ended[number] = outcome
    return ended


def _position(plan: _Plan) -> str:
    return plan.checkpoint.position if plan.checkpoint else ""


def _help(config: Config) -> None:
    """Help the leading process to train, then end this process."""
    told = distributed.hear()
    if told is not None:
        folder = Path(told["folder"])
        checkpoint = Checkpoint(folder, told["checkpoint"], "") if told["checkpoint"] else None
        run = Run(config, quiet=True, folder=folder, checkpoint=checkpoint, helps=True)
        names = list(run.steps)
        for step in names[len(run.done) : names.index("train") + 1]:
            for error in advance([run], step).values():
                raise error
    raise SystemExit


def _resumed(config: Config, folder: Path) -> _Plan | Path:
    """Plan to resume a run. Raises: UserError if its configuration differs, or if all checkpoints are damaged."""
    manifest = run_reader.read_manifest(folder)
    if keys := differences(run_reader.read_mapping(folder, manifest), to_mapping(config)):
        right = f"leave {'them' if len(keys) > 1 else 'it'} out, or start another run with rerun={folder}"
        raise UserError(f"{folder}: cannot be resumed with another {', '.join(keys)}; {right}")
    if manifest["state"] == "finished":
        print(f"already finished: {folder}")
        return folder
    return _Plan(config, folder, checkpoints.newest(folder))


def _plan(config: Config) -> _Plan | Path:
    """Plan a run of a sweep, or return its folder if it is finished already."""
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
        print(f"starts again: {folder} ({error})")
        return _Plan(config, folder)
    print(f"resumes: {folder}")
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
        return _position(plans[numbers[id(config)]])

    for stack in together([plan.config for plan in plans.values()], device, position):
        own = [numbers[id(config)] for config in stack]
        outcomes |= zip(own, _run_together([plans[number] for number in own], watch), strict=True)
    return [outcomes[number] for number in range(len(configs))]


def execute(
    configs: Sequence[Config], reuse: bool = False, folder: Path | None = None, watch: Watch | None = None
) -> list[Outcome]:
    """Make the runs of checked configurations; return each one's folder, or the error that stopped it.

    Args:
        configs: runs that can be trained together are, up to `stack` at a time.
        reuse: return a finished run of the same configuration and version, or resume an interrupted one.
        folder: of an interrupted run, which the only configuration resumes.
        watch: called after every evaluation, with nothing shown on the terminal; may raise `Pruned`.
    """
    with signals.heard(), distributed.joined():
        if distributed.size() > 1:
            distributed.require_one(configs, indivisible(configs[0]) if configs else None)
        if distributed.rank():
            _help(configs[0])
        return _execute(configs, reuse, folder, watch)
