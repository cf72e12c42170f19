"""Check a language model's configuration, before documents are read or a model is built."""

from gradroute.config.components import ablated_regions, step_names
from gradroute.config.doors import TARGET
from gradroute.config.limits import one_of, require
from gradroute.config.schema import Config
from gradroute.config.targets import construct, locate
from gradroute.data.text.datasets import TextDataset
from gradroute.errors import UserError
from gradroute.models.pretrained import HuggingFace
from gradroute.records.metrics import RELEARNED
from gradroute.tasks.image_checks import require_dataset, require_divisible
from gradroute.tasks.language_texts import Completions

LATER = ("unlearn", "finetune", "relearn")  # steps that train after `train`


def check_language(config: Config) -> None:
    """Raise UserError for settings that do not fit a language model."""
    require_dataset(config, TextDataset, "documents", "dataset=toy_stories, dataset=text")
    certified, batches = config.losses.certificates, config.trainer.batches
    require(not certified, "losses.certificates", certified, "[] for a language model")
    require(not config.losses.correlation, "losses.correlation", config.losses.correlation, "0 for a language model")
    require_divisible(config)
    require(batches == "mixed", "trainer.batches", batches, "mixed: a row contains several documents")
    names, target = step_names(config), locate(config.model[TARGET], "model")
    require("certify" not in names, "steps", names, "without certify: a language model has no certificates")
    tokenizer = config.dataset.get("tokenizer", "")
    if target is not HuggingFace:
        right = "words, bpe or a path: only model=hf has its own tokenizer"
        require(tokenizer != "pretrained", "dataset.tokenizer", tokenizer, right)
    elif not config.model["untrained"]:
        right = "pretrained, or the path of a tokenizer.json: the weights fit no other tokens"
        require(tokenizer not in ("words", "bpe"), "dataset.tokenizer", tokenizer, right)
    completed = build_completions(config)
    for group in completed.prompts if completed else ():
        one_of("completions.prompts", group, tuple(config.routing.groups))
    _check_ablated_model(config, names)


def build_completions(config: Config) -> Completions | None:
    """Return the configured completions, checked; None if there are none. Raises: UserError."""
    if config.completions is None:
        return None
    made: Completions = construct(Completions, config.completions, "completions")
    return made


def _check_ablated_model(config: Config, names: list[str]) -> None:
    """Raise UserError unless the steps after an ablation train one model, which the ablation changed."""
    if not set(LATER) & set(names) or "ablate" not in names:
        return
    regions, given = list(config.routing.regions), config.ablation["region"]
    one = given is not None or len(regions) == 1
    require(one, "ablation.region", given, f"one of {regions}: unlearn, finetune and relearn train one ablated model")
    method = locate(config.ablation[TARGET], "ablation")
    right = "remove or reinitialise: unlearn, finetune and relearn train the ablated model"
    require(method.changes_model, "ablation", method.name, right)


def objectives_of_relearning(config: Config) -> dict[str, dict[str, str]]:
    """Return the loss on the forget set after relearning from the most documents, and on the retain set before it.

    Raises: UserError for a language model that does not relearn, or that has several groups to retain.
    """
    relearn = config.relearn if "relearn" in step_names(config) else None
    others = [group for group in config.routing.groups if relearn and group != relearn["group"]]
    if relearn is None or len(others) != 1:
        fault = f"several groups are retained ({', '.join(others)})" if relearn else "no run relearns"
        raise UserError(f"search.objectives: is empty, and {fault}; give at least one objective")
    head, region = _before_relearning(config)
    forgotten = {"head": f"{RELEARNED}{max(relearn['documents'])}", "group": relearn["group"], "goal": "higher"}
    return {
        "relearned": {"metric": "cross_entropy", **forgotten},
        "retained": {"metric": "cross_entropy", "head": head, "region": region, "group": others[0]},
    }


def _before_relearning(config: Config) -> tuple[str, str]:
    """Return head and region of the model that relearning starts from."""
    names = step_names(config)
    for step, head in (("finetune", "model_finetuned"), ("unlearn", "model_unlearned")):
        if step in names:
            return head, "all"
    if "ablate" not in names:
        return "model", "all"
    return "model_ablated", "+".join(ablated_regions(config))
