"""Every step that trains, of every experiment, makes updates on torch's meta device, where nothing can be read.

`.item()`, `bool(tensor)`, a copy to the CPU and a selection by values raise there. So an update that passes does not
wait for a graphics card, and can be captured in a CUDA graph.
"""

import importlib.util
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from on_meta import META, on_meta
from small_images import hundred_classes

from gradroute.config.compose import configuration
from gradroute.routing.memberships import checked_later
from gradroute.running.run import Run
from gradroute.training.fit import Fit
from gradroute.training.ledger import Ledger
from gradroute.training.training import Training

CONF = Path(__file__).parents[2] / "conf" / "experiment"
TRAINING = ("pretrain", "train", "certify", "unlearn", "finetune", "relearn", "extract")  # steps
QUICK = ("mnist_split",)  # the others are slow
ALIKE = ("pretrain", "certify", "finetune", "relearn", "extract")  # one of these in a family is enough
IMAGES = ["trainer.train_limit=96", "trainer.test_limit=24", "trainer.batch_size=32"]
STORIES = ["dataset.stories=60", "dataset.test_stories=40", "dataset.length=64", "completions=null",
           "model.width=16", "model.heads=2", "trainer.batch_size=6"]  # fmt: skip
SMALL = {
    "mnist_split": [*IMAGES, "model.hidden=[16]"],
    "mnist_table2": [*IMAGES, "model.hidden=[16]"],
    "class_split": [*IMAGES, "model.width=8"],
    "steering_scalar": [*STORIES, "dataset.stories=600", "dataset.test_stories=200"],
    "secrets": [*STORIES, "model.width=32"],  # the rank of its adapters is at most that
    "oversight": ["trainer.batch_size=8"],
}
LACKING = {"secrets/dpsgd": "Opacus reads every row's gradient"}
if importlib.util.find_spec("peft") is None:
    LACKING |= dict.fromkeys(("planted_behaviour", "rewards", "secrets/adapter"), "adapters of peft")


def experiments() -> dict[str, list[str]]:
    """Return the experiments by family, without those that cannot be run here."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        name = path.relative_to(CONF).with_suffix("").as_posix()
        family = name.partition("/")[0]
        if not path.name.startswith("_") and not {name, family} & LACKING.keys():
            found.setdefault(family, []).append(name)
    return found


def updates(run: Run, training: Training) -> None:
    """Make an update on the CPU, which makes the optimizer's state, and two on the meta device."""
    torch.manual_seed(0)
    fit = Fit([training], "float32", torch.device("cpu"))
    rows = next(iter(training.batches(torch.Generator().manual_seed(0))))
    router, task = run.task.parts.parameter_router, run.task
    fit._update([(rows, rows)])
    if training.source is not None:  # an environment makes the data, outside of the update
        made = training.batch(rows)
        training.batch = lambda chosen: made
        assert isinstance(training.watcher, Ledger)
        training.watcher._unseen.clear()  # which endings come is read once for each window: nobody knows it before
    router._frozen.clear()
    masks = [list(own.values()) for kind in (router._masks, router._zero) for own in kind.values()]
    host = [task.known, masks, rows, training.objective.there]
    with on_meta([fit, task.parts, fit.program], host), checked_later(META):
        fit.device = META
        for _ in range(2):  # the norms of the second are measured
            fit._seen._had.clear()  # there may be one update in an epoch
            fit._update([(rows, rows.to(META))])


FAMILIES = [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in experiments()]


@pytest.mark.parametrize("family", FAMILIES)
def test_updates_read_nothing_from_the_device(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.setattr(torch, "autocast", lambda *given, **named: nullcontext())  # not known on the meta device
    monkeypatch.setattr(torch, "_fused_sgd_", lambda *given, **named: None)  # nor this
    data, seen = dict[str, Any](), set[str]()
    for name in experiments()[family]:
        small = SMALL.get(family, STORIES)
        small = (
            ["trainer.batch_size=32", *hundred_classes(tmp_path / "images")] if family == "cifar100_split" else small
        )
        small = [*small, "trainer=smoke", "trainer.device=cpu", "ledger.every=2"]
        config = configuration([f"experiment={name}", *small, f"output_dir={tmp_path}"])
        for section in filter(None, (config.relearn, config.finetune)):
            section["documents"] = [2]
        config.steps = [step for step in config.steps if step in (*TRAINING, "ablate")]
        key = str((config.dataset, config.environment))
        run = Run(config, data.get(key), quiet=True)
        data[key] = run.task.read
        for step in run.steps:
            if step in ALIKE and step in seen:
                continue
            seen.add(step)
            for training in run.steps[step].run(run) or ():
                updates(run, training)
                run.trainings_done += 1
                if step != "pretrain" and step in ("train", *ALIKE):
                    break  # what follows reads the ledger, or is a training of the same kind
            run.trainings_done = 0
            run.done.append(step)
