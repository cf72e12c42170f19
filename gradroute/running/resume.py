"""What a run goes on from: what it was, in a checkpoint of its folder, and back."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.checkpoints import Checkpoint
from gradroute.tasks.parts import read_weights

if TYPE_CHECKING:
    from gradroute.running.run import Run


def keep(run: "Run", fit: Mapping[str, Any] | None) -> None:
    """Write a checkpoint: what the run is, and with `fit` where its present task is."""
    position = f"{len(run.done)} steps, {run.tasks_done} tasks, {fit['step'] if fit else 0} updates"
    problem, cuda = run.problem, run.problem.device.type == "cuda"
    state = {
        "done": run.done, "tasks_done": run.tasks_done, "fit": fit, "steps_done": run.steps_done,
        "more": problem.more(), "order": run.order.get_state(), "rows": run.folder.rows,
        "seconds": run.folder.seconds, "train_began": run.train_began,
        "train_seconds": run.folder.manifest.get("train_seconds"), "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(problem.device) if cuda else None,
    }  # fmt: skip
    checkpoints.save(run.folder.path, position, state, problem.tensors())


def go_on(run: "Run", checkpoint: Checkpoint | None) -> None:
    """Be what the run was. Raises: UserError if the checkpoint is not of this run, or the data set is another."""
    folder, problem = run.folder, run.problem
    if folder.manifest.get("dataset_sha256") != problem.sha256:
        raise UserError(f"{folder.path}: the data set is not the one that the run began with (by its SHA-256)")
    if checkpoint is None:
        folder.resume(0.0, [], 0)
        folder.log("starts again: there is no checkpoint")
        return
    state = checkpoint.state(problem.device)
    try:
        for name in state["more"]:
            problem.make(name)
        read_weights(folder.path, problem.modules(), name=f"{checkpoint.name}/{checkpoints.WEIGHTS}")
        run.done, run.tasks_done = list(state["done"]), int(state["tasks_done"])
        run.steps_done, run.fit = int(state["steps_done"]), state["fit"]
        run.order.set_state(state["order"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), problem.device)
        run.train_began = float(state["train_began"])
        if state["train_seconds"] is not None:
            folder.manifest["train_seconds"] = float(state["train_seconds"])
        folder.resume(float(state["seconds"]), state["rows"], run.steps_done)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder.path / checkpoint.name}: is no checkpoint of this run ({reason})") from None
    problem.at_step(max(0, run.steps_done - 1))
    if "ablate" in run.done:
        run.ablate()
    folder.log(f"goes on from {checkpoint.name}: {checkpoint.position}")
