"""Reuse the training of a finished run if only the steps after it differ, such as unlearning."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradroute.config.components import SECTIONS
from gradroute.config.identity import differing, flat, to_mapping, without
from gradroute.config.schema import Config
from gradroute.errors import UserError
from gradroute.records import run_reader
from gradroute.records.atomic import write_atomically
from gradroute.records.provenance import version
from gradroute.records.tables import read_metrics
from gradroute.steps.base import RunState
from gradroute.training.order import batches
from gradroute.training.weights import WEIGHTS, read_weights

AFTER = (
    *(section for section in SECTIONS if section != "pretrain"),
    "name", "output_dir", "steps", "ablation", "completions", "checkpoint", "plots", "tracker", "trainer.device",
    "trainer.tune_steps", "trainer.unlearn_steps", "dataset.root",
)  # fmt: skip


def training_of(mapping: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a saved configuration that its training depends on, seed included, with dotted keys."""
    return flat(without(mapping, AFTER))


def _refusal(run: Path, config: Config, sha256: str) -> str | None:
    """Return why a run's training cannot be reused, or None. Raises: UserError if it is not a run or is damaged."""
    manifest = run_reader.read_manifest(run)
    if manifest["state"] != "finished":
        return f"it is not finished (state: {run_reader.state(run, manifest)})"
    if WEIGHTS not in manifest["files"]:
        return "it kept no weights"
    if manifest.get("dataset_sha256") != sha256:
        return "its data are different (by their SHA-256)"
    if manifest["packages"].get("gradroute") != version("gradroute"):
        return "another version of gradroute made it"
    its = training_of(run_reader.read_mapping(run, manifest))
    if keys := differing(its, training_of(to_mapping(config))):
        return f"it was trained with another {', '.join(keys)}"
    return None


def find_donor(config: Config, sha256: str) -> Path | None:
    """Return the run whose training `trained` reuses, for data with this SHA-256; None if null, or `auto` finds none.

    Raises: UserError if what it names is not a run, or if that run's training differs.
    """
    if config.trained is None:
        return None
    if config.trained != "auto":
        if reason := _refusal(Path(config.trained), config, sha256):
            raise UserError(f"trained={config.trained}: {reason}; name another run, or leave trained out")
        return Path(config.trained)
    for run in sorted(Path(config.output_dir).glob(f"*/*_seed{config.seed}*")):
        try:
            if _refusal(run, config, sha256) is None:
                return run
        except UserError:  # skip folders that are damaged or no runs
            continue
    return None


def reuse_training(run: RunState, other: Path) -> None:
    """Take over the training of another run: weights, curves, ledger and order of the data.

    Raises: UserError if the other run is damaged.
    """
    task, trainer = run.task, run.config.trainer
    manifest = run_reader.read_manifest(other)
    run_reader.check_files(other, manifest, [WEIGHTS])
    read_weights(other, task.modules())
    rows = read_metrics(other, manifest)
    trained = [row for row in rows if row["split"] == "train"]
    run.updates = max(row["step"] for row in trained)
    run.folder.rows += [r for r in rows if r["split"] == "train" or (r["split"] == "test" and r["step"] < run.updates)]
    if run.config.ledger.enabled:
        write_atomically(run.folder.path / "ledger.csv", run_reader.read_file(other, "ledger.csv", manifest))
    group_index = task.routed if trainer.batches == "by_group" else None
    for _ in range(trainer.epochs):
        for _ in batches(task.points, trainer.batch_size, run.order, group_index):
            pass
    task.at_step(run.updates - 1)
    run.folder.manifest |= {
        "train_seconds": manifest.get("train_seconds"),
        "trained_in": f"{other.parent.name}/{other.name}",
    }
    if "weights" in manifest:
        run.folder.manifest["weights"] = run.links = list(manifest["weights"])
    run.folder.keep({})  # write the manifest at once: if killed, the run resumes from a checkpoint of this training
    run.folder.log(f"reuses the training of {other}")
