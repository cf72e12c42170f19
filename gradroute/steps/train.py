"""Train the model under its routes together with its certificates, or reuse another run's training."""

from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from typing import ClassVar

import torch

from gradroute.config.schema import Config
from gradroute.steps.base import RunState, Step
from gradroute.tasks.base import Task
from gradroute.tasks.evaluation import Head
from gradroute.tasks.known import absent
from gradroute.tasks.probe import Probe
from gradroute.training.devices import computing
from gradroute.training.ledger import Ledger
from gradroute.training.objectives import UNLABELLED, Batch, Term
from gradroute.training.private import Noise, Spent, privacy_of, spent, try_privacy
from gradroute.training.training import Training


@dataclass
class Train(Step):
    """Train the model, by DP-SGD if `privacy` is given; the ledger says which group's gradients reach which region."""

    units: ClassVar[Mapping[str, str]] = {
        "epsilon": "of (epsilon, delta)-differential privacy of one row, by the RDP accountant",
        "delta": "the chance with which the guarantee of epsilon may fail",
        "noise_multiplier": "standard deviation of the noise, in multiples of privacy.clip",
    }

    def check(self, config: Config) -> None:
        """Raise UserError for a privacy that the training cannot give."""
        if config.trainer.precision != "auto":  # else the device decides; see `prepare`
            privacy_of(config)

    def prepare(self, task: Task) -> None:
        """Raise UserError for a privacy that the training cannot give, or a model whose rows' gradients are unknown."""
        privacy = privacy_of(task.config)
        if privacy is not None:
            try_privacy(task.objective(), task.batch(torch.arange(min(2, task.points), device=task.device)))

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training, from the beginning or from a checkpoint; none if another run's is reused."""
        if run.fit is None:
            run.train_began = run.folder.seconds
            run.folder.keep(run.task.kept())  # before the first checkpoint, which needs them
            if run.donor:
                run.reuse_training(run.donor)
                self._record(run, privacy_spent(run))
                return
        cost, settings, task = privacy_spent(run), run.config.ledger, run.task
        ledger = Ledger(task.router, task.parts.parameter_router, task.routed, settings.window, settings.every)
        run.window = settings.window if settings.enabled else 0
        yield training_of(run, ledger, cost)
        run.window = 0
        self._record(run, cost)
        task.at_step(run.updates - 1)  # no update has set it if the run was resumed after the last one
        run.folder.manifest["train_seconds"] = round(run.folder.seconds - run.train_began, 1)
        if settings.enabled:
            ledger.close(run.updates)
            run.folder.write_ledger(ledger.rows)
            run.link()
            run.folder.manifest["weights"] = run.links

    def _record(self, run: RunState, cost: Spent | None) -> None:
        """Record the guarantee that the training gives, if it gives one."""
        for metric, value in zip(self.units, astuple(cost), strict=True) if cost is not None else ():
            run.record("test", ("all", Head("model", "all"), metric, value))


def privacy_spent(run: RunState) -> Spent | None:
    """Return what a run's training costs in privacy, and the noise that it needs; None without `privacy`."""
    privacy = privacy_of(run.config)
    return None if privacy is None else spent(privacy, run.task.points, run.config.trainer)


def training_of(run: RunState, ledger: Ledger, cost: Spent | None) -> Training:
    """Return the training of a run's model, noted in a ledger if `ledger.enabled`; `cost`: see `privacy_spent`."""
    task, objective, privacy = run.task, run.task.objective(), privacy_of(run.config)
    noise = None if privacy is None or cost is None else Noise(privacy, cost.noise, run.config.seed)
    trainer = task.fitted(run.config.trainer, task.points)
    known = task.known
    every, noted = -(-trainer.epochs // task.curve_points), run.config.ledger.enabled

    def before_update(step: int, batch: Batch, rows: torch.Tensor) -> None:
        task.at_step(step)
        if noise is not None:
            noise.update = step
        if noted:
            if step % ledger.window == 0:
                run.link()
            objective.monitor = ledger.begin(step, task.group_index(batch), known.numbers if known else None, rows)
        if known:
            there = known.there[rows]
            objective.absent = absent(there, [*task.names, UNLABELLED])
            if objective.asks_present:
                objective.present = frozenset(known.numbers[rows].unique().tolist())
            if task.parameter_router is not None:
                objective.there = there

    def on_epoch(epoch: int, step: int, means: dict[Term, float]) -> None:
        run.updates = step
        means = task.after_epoch(epoch, step, means)
        for term, mean in means.items():
            run.record("train", (term.group, Head(term.head, term.region), term.metric, mean))
        if epoch % every == 0 and epoch < trainer.epochs:
            with computing(trainer.precision, task.device):
                run.evaluate()
            if run.watch:
                run.watch(step, run.headline())
        own = {term: mean for term, mean in means.items() if term.head in task.followed}
        run.progress.epoch(epoch, trainer.epochs, own or means)

    return run.training(
        Probe("train", objective, task.batch),
        on_epoch=on_epoch,
        before_update=before_update,
        parameter_router=task.parameter_router,
        group_index=task.routed if trainer.batches == "by_group" else None,
        compiled=trainer.compile,
        shared=True,
        watcher=ledger if noted else None,
        noise=noise,
        source=task.source,
    )
