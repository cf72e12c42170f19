"""Save a run to a checkpoint in its folder, and restore it exactly."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors import safe_open

from gradroute.errors import UserError
from gradroute.records import checkpoints
from gradroute.records.checkpoints import Checkpoint
from gradroute.steps.base import RunState, Step
from gradroute.training.states import read_state, save_state
from gradroute.training.weights import read_weights


def save_checkpoint(run: RunState, fit: Mapping[str, Any] | None, stays: bool = False) -> None:
    """Write a checkpoint of a run; `fit` is the state of its current training, None between trainings.

    stays: write it where a finished run keeps it, by its number of updates.
    """
    position = f"{len(run.done)} steps, {run.trainings_done} trainings, {fit['step'] if fit else 0} updates"
    task, cuda = run.task, run.task.device.type == "cuda"
    state = {
        "done": run.done, "trainings_done": run.trainings_done, "fit": fit, "updates": run.updates,
        "more": task.more(), "modules": list(run.modules), "links": list(run.links),
        "order": run.order.get_state(), "rows": run.folder.rows,
        "seconds": run.folder.seconds, "train_began": run.train_began,
        "train_seconds": run.folder.manifest.get("train_seconds"), "random": torch.get_rng_state(),
        "random_cuda": torch.cuda.get_rng_state(task.device) if cuda else None,
    }  # fmt: skip
    save_state(run.folder.path, position, state, run.tensors(), fit["step"] if fit and stays else None)


def restore(run: RunState, steps: Mapping[str, Step], checkpoint: Checkpoint | None) -> None:
    """Restore a run from a checkpoint, or from its beginning without one; `steps` are its steps by name.

    Raises: UserError if the checkpoint is of another run, or if the data set has changed.
    """
    folder, task = run.folder, run.task
    if folder.manifest.get("dataset_sha256") != task.sha256:
        raise UserError(f"{folder.path}: the data set is not the one that the run began with (by its SHA-256)")
    if checkpoint is None:
        folder.resume(0.0, [], 0)
        folder.log("starts from the beginning: there is no checkpoint")
        return
    state = read_state(checkpoint, task.device)
    try:
        _restore_weights(run, checkpoint, state)
        run.done, run.trainings_done = list(state["done"]), int(state["trainings_done"])
        run.updates, run.fit = int(state["updates"]), state["fit"]
        run.links = [str(link) for link in state.get("links", ())]  # older checkpoints have none
        run.order.set_state(state["order"].cpu())
        torch.set_rng_state(state["random"].cpu())
        if state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu(), task.device)
        run.train_began = float(state["train_began"])
        if state["train_seconds"] is not None:
            folder.manifest["train_seconds"] = float(state["train_seconds"])
        folder.resume(float(state["seconds"]), state["rows"], run.updates)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{folder.path / checkpoint.name}: is not a checkpoint of this run ({reason})") from None
    task.at_step(max(0, run.updates - 1))
    for name in run.done:
        steps[name].again(run)
    folder.log(f"resumes from {checkpoint.name}: {checkpoint.position}")


def _restore_weights(run: RunState, checkpoint: Checkpoint, state: Mapping[str, Any]) -> None:
    """Load the weights of what was trained; keep those of modules that a step makes until it makes them."""
    for name in state["more"]:
        run.task.make(name)
    file = f"{checkpoint.name}/{checkpoints.WEIGHTS}"
    read_weights(run.folder.path, run.task.modules(), name=file)
    with safe_open(run.folder.path / file, "pt") as weights:
        for name in state["modules"]:
            prefix = f"steps.{name}."
            own = [key for key in weights.keys() if key.startswith(prefix)]  # noqa: SIM118 # not a mapping
            run.saved[name] = {key.removeprefix(prefix): weights.get_tensor(key) for key in own}
