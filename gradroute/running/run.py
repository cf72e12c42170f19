"""One run in its folder: make, checkpoint, resume and end it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gradroute.config.components import step_names, steps_of
from gradroute.config.schema import Config
from gradroute.errors import UserError, first_line
from gradroute.records import checkpoints
from gradroute.records.checkpoints import Checkpoint
from gradroute.records.metrics import final_rows
from gradroute.records.run_folder import RunFolder, Unwritten
from gradroute.records.run_reader import read_manifest
from gradroute.running.progress import Progress
from gradroute.running.resume import restore, save_checkpoint
from gradroute.running.trackers import track, tracker_of
from gradroute.running.warm_start import find_donor, reuse_training
from gradroute.steps.base import RunState, Step, Watch
from gradroute.tasks.base import create
from gradroute.training.compiling import require_compiler
from gradroute.training.environment import environment


class Pruned(Exception):
    """Raised by a watcher that stops a run; the run is neither finished nor resumed."""


class Run(RunState):
    """A run in its folder.

    Raises: UserError for a mistake in the configuration or the data, before anything is written.
    """

    def __init__(
        self, config: Config, data: Any = None, stacked: int = 1, quiet: bool = False,
        folder: Path | None = None, checkpoint: Checkpoint | None = None, helps: bool = False,
        watch: Watch | None = None,
    ) -> None:  # fmt: skip
        """Check everything, then make the folder.

        Args:
            data: the data set, if it is loaded already. stacked: number of runs that are trained together.
            quiet: write to the log only, not to the terminal.
            folder, checkpoint: those of an unfinished run to resume; without a checkpoint it starts from the beginning.
            helps: whether another process leads the run, and is the only one to write to its folder.
            watch: called after every evaluation during training.
        """
        super().__init__()
        begun = folder if checkpoint else None
        self.config, self.task = config, create(config, data, begun)
        self.steps: dict[str, Step] = dict(zip(step_names(config), steps_of(config), strict=True))
        for step in self.steps.values():
            step.prepare(self.task)
        self.donor = find_donor(config, self.task.sha256)
        if config.trainer.compile and self.donor is None:
            require_compiler(self.task.device)
        tracker = None if helps else tracker_of(config)
        self.order.manual_seed(config.seed)
        self.stacked, self.watch = stacked, watch
        self.error: Exception | None = None
        units = self.task.units()
        for step in self.steps.values():
            units |= step.units
        if folder is None:
            self.folder = RunFolder.create(self.config, self._facts())
            self._keep_mask()
        else:
            self.folder = (Unwritten if helps else RunFolder)(folder, read_manifest(folder))
        self.folder.units |= units
        self.progress: Progress = Progress(self.folder.log, quiet)
        self.tracker = track(tracker, self)
        if folder is not None:
            try:
                restore(self, self.steps, checkpoint)
            except BaseException:
                self.folder.release()
                raise

    @property
    def trains(self) -> bool:
        """Whether the run has a training of its own to do, which other processes can help with."""
        return "train" not in self.done and self.donor is None

    def checkpoint(self, fit: Mapping[str, Any] | None = None) -> None:
        """Save a checkpoint to resume from; `fit` is the state of the current training."""
        if not isinstance(self.folder, Unwritten):
            save_checkpoint(self, fit)

    def keep_checkpoint(self, fit: Mapping[str, Any]) -> None:
        """Save a checkpoint that the finished run keeps, to make the training again from it."""
        if not isinstance(self.folder, Unwritten):
            save_checkpoint(self, fit, stays=True)

    def end_step(self, step: str) -> None:
        """Mark a step as done, and save a checkpoint unless it is the last."""
        self.done, self.trainings_done = [*self.done, step], 0
        if step != list(self.steps)[-1]:
            self.checkpoint()

    def reuse_training(self, donor: Path) -> None:
        """Take over the training of the run in `donor`. Raises: UserError if that run is damaged."""
        reuse_training(self, donor)

    def anchor(self, config: Config, make: bool) -> Path:
        """Return a finished run of this training from the output folder; make it if there is none and `make`.

        Raises: UserError if it is not found, or the error that stopped it.
        """
        from gradroute.running.runner import execute  # which makes runs by this class

        found = find_donor(replace(config, trained="auto"), self.task.sha256)
        if found is not None:
            return found
        if not make:
            raise UserError("no finished run of this training in output_dir, and audit.make=false")
        self.folder.log(f"makes an anchor, seed {config.seed}")
        (outcome,) = execute([config], reuse=True)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def _keep_mask(self) -> None:
        """Copy the files of a mask that a pilot found into the run's folder: its routing, and the evidence for it."""
        auto = self.config.routing.auto
        if auto is not None and auto.found is not None:
            place = Path(auto.found)
            files = [path for path in sorted(place.rglob("*")) if path.is_file() and not path.name.startswith(".")]
            self.folder.keep({path.relative_to(place).as_posix(): path.read_bytes() for path in files})

    def pause(self) -> None:
        """Leave the run as if it had been interrupted, so that it can be resumed in its folder."""
        if self.tracker is not None:
            self.tracker.end(KeyboardInterrupt())
        self.folder.finish("interrupted")

    def _facts(self) -> dict[str, Any]:
        found = environment(self.task.device, self.config.trainer.precision)
        return found | {"dataset_sha256": self.task.sha256, "stacked": self.stacked}

    def end(self, error: BaseException | None = None) -> None:
        """Record how the run ended and, if it finished, the checksum of every file."""
        if self.tracker is not None:
            self.tracker.end(error)
        if error is None:
            checkpoints.remove(self.folder.path)
            self.progress.headline(self.folder.path, final_rows(self.folder.rows), self.task.names)
            self.folder.finish("finished")
            return
        self.error = error if isinstance(error, Exception) else None
        reason = first_line(error) or type(error).__name__
        state = "interrupted" if isinstance(error, KeyboardInterrupt | SystemExit) else f"failed ({reason})"
        try:
            if isinstance(error, Pruned):
                checkpoints.remove(self.folder.path)
                state = f"pruned ({reason})"
            self.folder.log(f"ended: {reason}")
            self.folder.finish(state)
        except OSError:  # the folder is full, read-only or gone, which may be why the run ended
            self.folder.release()
