"""Every range and cross-field check of a language model's configuration that needs neither model nor documents."""

from gradroute.config.language_schema import (
    CompletionsConfig,
    HFModel,
    SteeringConfig,
    TextConfig,
    TransformerSizes,
    TuneConfig,
    UnlearnConfig,
)
from gradroute.config.schema import Config
from gradroute.config.validation import MANY, WEIGHT, WIDTH, one_of, require, require_number
from gradroute.errors import UserError

TUNES = ("finetune", "relearn")
LATER = ("unlearn", *TUNES)  # steps that only language models have


def check_language(config: Config) -> None:
    """Raise UserError at the first value of a language model that does not fit, or that only one has."""
    text, sizes, hf = config.dataset.text, config.model.transformer, config.model.hf
    if text is None and sizes is None and hf is None:
        rules = [name for name, rule in config.routing.groups.items() if rule.tokens != "all"]
        require(not rules, "routing.groups", rules, "without tokens=: images have none")
        for key in ("tune_steps", "unlearn_steps"):
            require(
                getattr(config.trainer, key) is None, f"trainer.{key}", getattr(config.trainer, key), "null for images"
            )
        for step in LATER:
            require(step not in config.steps, "steps", config.steps, f"without {step}, which is for language models")
        require("steer" not in config.steps, "steps", config.steps, "without steer, which is for language models")
        for key in ("completions", "steering"):
            require(getattr(config, key) is None, key, "{…}", "null for images")
        return
    if sizes is not None and hf is not None:
        raise UserError("model: has both transformer and hf; leave one out, by model=hf or model=transformer")
    if text is None or (sizes is None and hf is None):
        what = "dataset=toy_stories or dataset=text" if text is None else "model=transformer"
        raise UserError(f"a language model needs both a transformer and documents; add {what}")
    require(not config.losses.certificates, "losses.certificates", config.losses.certificates, "[] of a transformer")
    require(
        config.trainer.batches == "mixed",
        "trainer.batches",
        config.trainer.batches,
        "mixed: a row has several documents",
    )
    _check_text(text)
    if sizes is not None:
        _check_sizes(sizes)
        right = "words, bpe or a path: model=hf alone has its own"
        require(text.tokenizer != "pretrained", "dataset.text.tokenizer", text.tokenizer, right)
    if hf is not None:
        _check_hf(hf, text.tokenizer)
    _check_later(config)
    right = "with steer if, and only if, steering= says how"
    require(("steer" in config.steps) == (config.steering is not None), "steps", config.steps, right)
    if config.steering is not None:
        _check_steering(config.steering, config)
    if config.completions is not None:
        _check_completions(config.completions, tuple(config.routing.groups))


def _check_later(config: Config) -> None:
    """What trains after the training: each step with its settings, and only then, and on one model."""
    groups = tuple(config.routing.groups)
    for step in LATER:
        later = getattr(config, step)
        right = f"with {step} if, and only if, {step}= says how"
        require((step in config.steps) == (later is not None), "steps", config.steps, right)
        if later is None:
            continue
        key = "trainer.unlearn_steps" if step == "unlearn" else "trainer.tune_steps"
        require_number(key, getattr(config.trainer, key.partition(".")[2]), 1, MANY, int)
        one_of(f"{step}.group", later.group, groups)
        require_number(f"{step}.rate", later.rate, 1e-6, 10)
        if step == "unlearn":
            _check_unlearn(later)
        else:
            _check_tune(step, later)
    if not any(getattr(config, step) for step in LATER) or "ablate" not in config.steps:
        return
    regions = list(config.routing.regions)
    one = config.ablation.region is not None or len(regions) == 1
    right = f"said before unlearn, finetune or relearn, one of {regions}"
    require(one, "ablation.region", config.ablation.region, right)
    kinds = ("remove", "reinitialise")
    right = f"{' or '.join(kinds)}, which change the model itself, before it is trained on"
    require(config.ablation.kind in kinds, "ablation.kind", config.ablation.kind, right)


def _check_text(text: TextConfig) -> None:
    require_number("dataset.text.length", text.length, 2, MANY, int)
    require_number("dataset.text.test_stories", text.test_stories, 1, MANY, int)
    require_number("dataset.text.share", text.share, 0, 1)
    whole = text.split.strip() != "" and text.test_split != ""
    require(whole, "dataset.text.split", repr(text.split), "the name of a split, and test_split another's or null")
    alone = text.hub is not None or (text.split, text.test_split) == ("train", None)
    require(alone, "dataset.text.split", text.split, "left out, and test_split, where hub names no data set")
    for key in ("stories", "vocabulary"):
        if getattr(text, key) is not None:
            require_number(f"dataset.text.{key}", getattr(text, key), 1, MANY, int)


def _check_sizes(sizes: TransformerSizes) -> None:
    for key in ("layers", "width", "heads", "hidden"):
        if getattr(sizes, key) is not None:
            require_number(f"model.transformer.{key}", getattr(sizes, key), 1, WIDTH, int)
    _check_expansion("model.transformer", sizes.expand, sizes.added, sizes.layers)


def _check_hf(hf: HFModel, tokenizer: str) -> None:
    named = hf.pretrained.strip() != "" and hf.pretrained.isprintable()
    require(named, "model.hf.pretrained", repr(hf.pretrained), "the name of a model on the hub, or a local folder")
    _check_expansion("model.hf", hf.expand, hf.added, WIDTH)  # the model itself says how many layers it has
    right = "pretrained, or the path of a tokenizer.json: the weights know no other tokens"
    require(hf.untrained or tokenizer not in ("words", "bpe"), "dataset.text.tokenizer", tokenizer, right)


def _check_expansion(key: str, expand: list[int], added: int, layers: int) -> None:
    require_number(f"{key}.added", added, 0, WIDTH, int)
    for layer in expand:
        require_number(f"{key}.expand", layer, 0, layers - 1, int)
    right = f"more than 0 if, and only if, {key}.expand names layers"
    require(bool(expand) == bool(added), f"{key}.added", added, right)


def _check_tune(step: str, tune: TuneConfig) -> None:
    require_number(f"{step}.every", tune.every, 1, MANY, int)
    require_number(f"{step}.samples", tune.samples, 1, 1000, int)
    require(bool(tune.documents), f"{step}.documents", tune.documents, "a list of numbers of documents")
    for number in tune.documents:
        require_number(f"{step}.documents", number, 1, MANY, int)


def _check_unlearn(unlearn: UnlearnConfig) -> None:
    require(unlearn.site.strip() != "", "unlearn.site", repr(unlearn.site), "a module's name, such as blocks.2")
    require(bool(unlearn.layers), "unlearn.layers", unlearn.layers, "a list of layers, such as [0,1,2]")
    for layer in unlearn.layers:
        require_number("unlearn.layers", layer, 0, WIDTH, int)  # the model itself says how many it has
    require(len(set(unlearn.layers)) == len(unlearn.layers), "unlearn.layers", unlearn.layers, "each layer once")
    require_number("unlearn.norm", unlearn.norm, 1e-6, WEIGHT)
    require_number("unlearn.retain", unlearn.retain, 0, WEIGHT)


def _check_completions(completions: CompletionsConfig, groups: tuple[str, ...]) -> None:
    require(bool(completions.prompts), "completions.prompts", "{}", "lists of prompts by group, or completions null")
    for group, prompts in completions.prompts.items():
        one_of("completions.prompts", group, groups)
        holds = bool(prompts) and all(prompt.strip() for prompt in prompts)
        require(holds, f"completions.prompts.{group}", prompts, "at least one prompt, and no empty one")
    require_number("completions.tokens", completions.tokens, 1, 10_000, int)
    require_number("completions.samples", completions.samples, 1, 1000, int)
    require_number("completions.temperature", completions.temperature, 0, 100)


def _check_steering(steer: SteeringConfig, config: Config) -> None:
    groups = config.routing.groups
    one_of("steering.group", steer.group, tuple(groups))
    words = groups[steer.group].words
    require(bool(words), "steering.group", steer.group, "a group whose rule is words")
    require(steer.site.strip() != "", "steering.site", repr(steer.site), "a module's name, such as blocks.2")
    require_number("steering.unit", steer.unit, 0, WIDTH, int)
    require(bool(steer.strengths), "steering.strengths", steer.strengths, "a list of numbers, such as [0,10]")
    for strength in steer.strengths:
        require_number("steering.strengths", strength, -WEIGHT, WEIGHT)
    different = len(set(steer.strengths)) == len(steer.strengths)
    require(different, "steering.strengths", steer.strengths, "each number once")
    require(bool(steer.prompts) and all(p.strip() for p in steer.prompts), "steering.prompts", steer.prompts,
            "at least one prompt, and no empty one")  # fmt: skip
    for key, largest in (("nearest", 10_000), ("random", 10_000), ("tokens", 10_000), ("samples", 1000)):
        require_number(f"steering.{key}", getattr(steer, key), 1, largest, int)
    require_number("steering.temperature", steer.temperature, 0, 100)
