"""Every range and cross-field check of a language model's configuration that needs neither model nor documents."""

from gradroute.checks import MANY, WIDTH, one_of, require, require_number
from gradroute.errors import UserError
from gradroute.language_schema import CompletionsConfig, HFModel, TextConfig, TransformerSizes, TuneConfig
from gradroute.schema import Config

TUNES = ("finetune", "relearn")


def check_language(config: Config) -> None:
    """Raise UserError at the first value of a language model that does not fit, or that only one has."""
    text, sizes, hf = config.dataset.text, config.model.transformer, config.model.hf
    if text is None and sizes is None and hf is None:
        rules = [name for name, rule in config.routing.groups.items() if rule.tokens != "all"]
        require(not rules, "routing.groups", rules, "without tokens=: images have none")
        require(config.trainer.tune_steps is None, "trainer.tune_steps", config.trainer.tune_steps, "null for images")
        for step in TUNES:
            require(step not in config.steps, "steps", config.steps, f"without {step}, which is for language models")
        require(config.completions is None, "completions", "{…}", "null for images")
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
    for step in TUNES:
        tune = getattr(config, step)
        right = f"with {step} if, and only if, {step}= says how"
        require((step in config.steps) == (tune is not None), "steps", config.steps, right)
        if tune is not None:
            require_number("trainer.tune_steps", config.trainer.tune_steps, 1, MANY, int)
            _check_tune(step, tune, tuple(config.routing.groups))
    if config.finetune or config.relearn:
        regions = list(config.routing.regions)
        one = config.ablation.region is not None or len(regions) == 1 or "ablate" not in config.steps
        require(one, "ablation.region", config.ablation.region, f"said before finetune or relearn, one of {regions}")
    if config.completions is not None:
        _check_completions(config.completions, tuple(config.routing.groups))
    kinds = ("remove", "reinitialise")
    fits = "ablate" not in config.steps or config.ablation.kind in kinds or not (config.finetune or config.relearn)
    right = f"{' or '.join(kinds)}, which change the model itself, before it is trained on"
    require(fits, "ablation.kind", config.ablation.kind, right)


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


def _check_tune(step: str, tune: TuneConfig, groups: tuple[str, ...]) -> None:
    one_of(f"{step}.group", tune.group, groups)
    require_number(f"{step}.every", tune.every, 1, MANY, int)
    require_number(f"{step}.samples", tune.samples, 1, 1000, int)
    require_number(f"{step}.rate", tune.rate, 1e-6, 10)
    require(bool(tune.documents), f"{step}.documents", tune.documents, "a list of numbers of documents")
    for number in tune.documents:
        require_number(f"{step}.documents", number, 1, MANY, int)


def _check_completions(completions: CompletionsConfig, groups: tuple[str, ...]) -> None:
    require(bool(completions.prompts), "completions.prompts", "{}", "lists of prompts by group, or completions null")
    for group, prompts in completions.prompts.items():
        one_of("completions.prompts", group, groups)
        holds = bool(prompts) and all(prompt.strip() for prompt in prompts)
        require(holds, f"completions.prompts.{group}", prompts, "at least one prompt, and no empty one")
    require_number("completions.tokens", completions.tokens, 1, 10_000, int)
    require_number("completions.samples", completions.samples, 1, 1000, int)
    require_number("completions.temperature", completions.temperature, 0, 100)
