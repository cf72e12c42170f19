"""Taking over the training of a finished run, of which only the steps after it differ, such as how it unlearns."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gradroute.config.schema import Config
from gradroute.config.typed import flat, to_mapping
from gradroute.errors import UserError
from gradroute.records import run_reader
from gradroute.records.provenance import version
from gradroute.records.run_folder import write_atomically
from gradroute.tasks.parts import WEIGHTS, read_weights
from gradroute.training.fit import batches

if TYPE_CHECKING:
    from gradroute.running.run import Run

AFTER = (
    "name", "output_dir", "steps", "ablation", "unlearn", "finetune", "relearn", "completions", "checkpoint",
)  # fmt: skip
TRAINER_AFTER = ("device", "tune_steps", "unlearn_steps")


def training_of(config: Config) -> dict[str, Any]:
    """The part of a configuration that its training depends on, with dotted keys; the seed is in it."""
    mapping = to_mapping(config)
    for key in AFTER:
        del mapping[key]
    for key in TRAINER_AFTER:
        del mapping["trainer"][key]
    del mapping["dataset"]["root"]
    return flat(mapping)


def _refusal(run: Path, config: Config, sha256: str) -> str | None:
    """Why a run's training cannot be taken over, or None. Raises: UserError if it is no run, or damaged."""
    manifest = run_reader.read_manifest(run)
    if manifest["state"] != "finished":
        return f"it is not finished (state: {run_reader.state(run, manifest)})"
    if WEIGHTS not in manifest["files"]:
        return "it kept no weights"
    if manifest.get("dataset_sha256") != sha256:
        return "its data are others (by their SHA-256)"
    if manifest["packages"].get("gradroute") != version("gradroute"):
        return "another version of gradroute made it"
    mine, its = training_of(config), training_of(run_reader.read_config(run, manifest))
    if keys := [key for key in {**its, **mine} if its.get(key) != mine.get(key) or (key in its) != (key in mine)]:
        return f"it was trained with another {', '.join(keys)}"
    return None


def donor(config: Config, sha256: str) -> Path | None:
    """The run whose training `trained` means, for data with this SHA-256; None if it is null, or `auto` finds none.

    Raises: UserError if the run that it names is no run, or its training is another.
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
        except UserError:  # what is no run, or damaged, is passed over
            continue
    return None


def take_over(run: "Run", other: Path) -> None:
    """Have a run be as if it had trained as another did: weights, curves, ledger and order of the data.

    Raises: UserError if the other run is damaged.
    """
    problem, trainer = run.problem, run.config.trainer
    manifest = run_reader.read_manifest(other)
    run_reader.check_files(other, manifest, [WEIGHTS])
    read_weights(other, problem.modules())
    rows = run_reader.read_metrics(other, manifest)
    trained = [row for row in rows if row["split"] == "train"]
    run.steps_done = max(row["step"] for row in trained)
    run.folder.rows += [
        r for r in rows if r["split"] == "train" or (r["split"] == "test" and r["step"] < run.steps_done)
    ]
    if run.config.ledger.enabled:
        write_atomically(run.folder.path / "ledger.csv", run_reader.read_file(other, "ledger.csv", manifest))
    group_index = problem.routed if trainer.batches == "by_group" else None
    for _ in range(trainer.epochs):
        for _ in batches(problem.points, trainer.batch_size, run.order, group_index):
            pass
    problem.at_step(run.steps_done - 1)
    run.folder.manifest |= {
        "train_seconds": manifest.get("train_seconds"),
        "trained_in": f"{other.parent.name}/{other.name}",
    }
    run.folder.keep({})  # the manifest, at once: one that is killed goes on from a checkpoint of this training
    run.folder.log(f"takes over the training of {other}")
