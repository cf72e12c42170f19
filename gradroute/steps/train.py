"""Train the model under its routes together with its certificates, or reuse another run's training."""

from collections.abc import Iterator
from dataclasses import dataclass

from gradroute.steps.base import RunState, Step
from gradroute.tasks.base import Probe
from gradroute.tasks.evaluation import Head
from gradroute.training.devices import computing
from gradroute.training.fit import Training
from gradroute.training.ledger import Ledger
from gradroute.training.objectives import Batch, Term


@dataclass
class Train(Step):
    """Train the model; the ledger records which group's gradients reach which region."""

    def run(self, run: RunState) -> Iterator[Training]:
        """Yield one training, from the beginning or from a checkpoint; none if another run's is reused."""
        if run.fit is None:
            run.train_began = run.folder.seconds
            run.folder.keep(run.task.kept())  # before the first checkpoint, which needs them
            if run.donor:
                run.reuse_training(run.donor)
                return
        settings, task = run.config.ledger, run.task
        ledger = Ledger(task.router, task.parts.parameter_router, task.routed, settings.window, settings.every)
        run.window = settings.window if settings.enabled else 0
        yield training_of(run, ledger)
        run.window = 0
        task.at_step(run.updates - 1)  # no update has set it if the run was resumed after the last one
        run.folder.manifest["train_seconds"] = round(run.folder.seconds - run.train_began, 1)
        if settings.enabled:
            ledger.close(run.updates)
            run.folder.write_ledger(ledger.rows)
            run.link()
            run.folder.manifest["weights"] = run.links


def training_of(run: RunState, ledger: Ledger) -> Training:
    """Return the training of a run's model, noted in a ledger if `ledger.enabled`."""
    task, objective = run.task, run.task.objective()
    trainer = task.fitted(run.config.trainer, task.points)
    every, noted = -(-trainer.epochs // task.curve_points), run.config.ledger.enabled

    def before_update(step: int, batch: Batch) -> None:
        task.at_step(step)
        if noted:
            if step % ledger.window == 0:
                run.link()
            objective.monitor = ledger.begin(step, task.group_index(batch))

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
        source=task.source,
    )
