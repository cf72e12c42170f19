"""Use a Hugging Face causal model in a run: fetch it once, and read it back from the run's folder alone.

The folder has `model.json`, with the `transformers` configuration and the name of the end token, and `tokenizer.json`.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from gradroute.config.limits import WIDTH, Between, Text, require
from gradroute.data.hub import file_of, gguf_of, package, reason
from gradroute.data.text import tokenizing
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.errors import UserError, unknown
from gradroute.models.added_units import add_units, copy_units
from gradroute.models.base import ModelPlan
from gradroute.models.causal_lm import CausalLM
from gradroute.models.loading import load, located
from gradroute.models.logits import LOGITS
from gradroute.models.outlines import meta
from gradroute.records.run_reader import read_file, read_manifest
from gradroute.records.safe_reading import LIMITS, read_json, read_text
from gradroute.routing.expansion import Layer

MODEL, TOKENIZER = "model.json", "tokenizer.json"
LEFT_OUT = ("dtype", "torch_dtype", "architectures", "transformers_version", "id2label", "label2id")
NUMBER = 2**31  # largest number in a configuration
MANY = 1024  # most layers or experts: each is a module, even on the meta device


class HuggingFace(ModelPlan):
    """A causal language model of Hugging Face `transformers`; needs `gradroute[hf]`.

    Sites are its modules' names below `model.`, such as `model.gpt_neox.layers.3.mlp.act` of a GPT-NeoX.

    Args:
        pretrained: its name on the hub, a local folder, or a GGUF file, which is read as float32.
        untrained: use its architecture with random weights, drawn by the run's seed.
        expand: layers whose MLPs get `added` units more (GR section 4.2.2), see `copy_units`; they must be made of
            `torch.nn.Linear`.
        added_scale: factor of the added units' activations before training; see `copy_units`.
    """

    task = "language"
    smaller = "choose a smaller model.pretrained"

    def __init__(
        self, pretrained: Annotated[str, Text("the name of a model on the hub, a local folder or a GGUF file")],
        untrained: bool = False, expand: Sequence[Annotated[int, Between(0, WIDTH)]] = (),
        added: Annotated[int, Between(0, WIDTH)] = 0, added_scale: Annotated[float, Between(1e-3, 1e3)] = 1.0,
    ) -> None:  # fmt: skip
        self.source, self.untrained, self.expand, self.added = pretrained, untrained, list(expand), added
        self.added_scale = added_scale
        plain = added_scale == 1 or bool(expand and not untrained)
        require(plain, "model.added_scale", added_scale, "1.0, unless units are added to a pretrained model")
        require(bool(expand) == bool(added), "model.added", added, "more than 0 if, and only if, model.expand names "
                "layers")  # fmt: skip
        self.config: Any = None
        self.run: Path | None = None  # the folder to read it back from
        self.manifest: Mapping[str, Any] | None = None
        self.end = ""  # the token that ends a document, as stored in the folder
        self.own_tokenizer = False  # whether it was asked for

    def fetch(self) -> None:
        """Read the configuration from the hub or a local folder; weights are not read yet.

        Raises: UserError if the package is missing, or the model cannot be reached or is not supported.
        """
        what = f"model '{self.source}'"
        transformers = package("transformers", what)
        place = Path(self.source).expanduser()
        local = place.is_absolute() or self.source[:1] in ".~" or place.suffix == ".gguf"
        if local and not place.is_dir() and gguf_of(self.source) is None:
            raise UserError(f"model.pretrained={self.source}: no such folder or GGUF file")
        whole = gguf_of(self.source) is None
        if local and whole and not (place / "config.json").is_file():  # transformers 4.53 guesses by the folder's name
            raise UserError(f"{what}: its configuration cannot be read [{place / 'config.json'}: no such file]")
        try:
            name, options = located(self.source)
            config = transformers.AutoConfig.from_pretrained(name, trust_remote_code=False, **options)
        except Exception as error:  # any error of the hub, the network or the files
            fault = "its configuration cannot be read" if whole else "is not a whole GGUF file, or of an unknown kind"
            raise UserError(f"{what}: {fault} [{reason(error)}]") from None
        if getattr(config, "quantization_config", None) is not None:
            raise UserError(f"{what}: is quantized and cannot be trained; choose the unquantized model")
        self.config = _checked(_plain(config), what)

    def read_back(self, run: Path) -> None:
        """Read the configuration from a run's folder, without the hub and without running code.

        Raises: UserError if the package is missing, or the file is damaged or of a model that transformers lacks.
        """
        where, manifest = run / MODEL, read_manifest(run)
        found = read_json(read_file(run, MODEL, manifest), where)
        valid = isinstance(found, dict) and isinstance(found.get("config"), dict) and type(found.get("end")) is str
        if not valid:
            raise UserError(f"{where}: damaged (no configuration and end token)")
        self.config, self.run, self.manifest = _checked(found["config"], str(where)), run, manifest
        self.end = found["end"]

    def check_length(self, length: int) -> None:
        """Raise UserError if rows are longer than the model's context, or than the window of its attention."""
        context, window = (getattr(self.config, key, None) for key in ("max_position_embeddings", "sliding_window"))
        for what, most in (("context of '{}' is", context), ("attention of '{}' is over", window)):
            if most is not None and length > most:  # packed rows have masks without a window
                fits = f"the {what.format(self.source)} {most} tokens"
                raise UserError(f"dataset.length={length}: {fits}; lower it")

    def tokenizer(self) -> Tokenizer:
        """Return the model's own tokenizer. Raises: UserError if it has none or its end token is not known."""
        self.own_tokenizer = True
        if self.run is not None:
            where = self.run / TOKENIZER
            text = read_text(read_file(self.run, TOKENIZER, self.manifest), where)
            return tokenizing.parse(text, where, self.end)
        if gguf_of(self.source) is not None:
            return self._gguf_tokenizer()
        path = file_of(self.source, TOKENIZER)
        if path is None:
            right = "set dataset.tokenizer to the path of one"
            raise UserError(f"model '{self.source}' has no {TOKENIZER}; {right}")
        size, largest = path.stat().st_size, LIMITS[".json"] // 2  # the indented file must be within the limit, too
        if size > largest:
            raise UserError(f"{path}: has {size} bytes, and a run keeps at most {largest}; choose another model")
        return tokenizing.load(path, _end(self.source, self.config))

    def _gguf_tokenizer(self) -> Tokenizer:
        name, options = located(self.source)
        try:
            made = package("transformers", self.source).AutoTokenizer.from_pretrained(name, **options)
            text, end = made.backend_tokenizer.to_str(), made.eos_token
        except Exception as error:  # any error of the file or its conversion
            raise UserError(f"model '{self.source}': its tokenizer cannot be read [{reason(error)}]") from None
        return tokenizing.parse(text, self.source, end or tokenizing.END)

    def build(self, **found: Any) -> CausalLM:
        """Return the initial model; one that is read back has random weights until its own are loaded.

        Raises: UserError if it cannot be loaded, or does not fit the tokenizer or the rows' length.
        """
        vocabulary, length = int(found["vocabulary"]), int(found["context"])
        self.check_length(length)
        own = int(self.config.vocab_size)
        if vocabulary > own:
            right = (
                "choose another model" if self.own_tokenizer else "use the model's own, dataset.tokenizer=pretrained"
            )
            raise UserError(f"dataset.tokenizer: has {vocabulary} tokens, and '{self.source}' has {own}; {right}")
        random = self.run is not None or self.untrained
        model = self._random() if random else load(self.source, self.config)
        model.require_separation()
        if length * own > LOGITS and not model.divided:
            fault = f"a {type(model.model).__name__} computes the logits of whole rows only"
            raise UserError(f"dataset.length={length}: {fault}; use at most {max(2, LOGITS // own)}")
        return self._expanded(model, trained=not random)

    def _random(self) -> CausalLM:
        try:
            return load(self.config)
        except UserError as error:
            raise UserError(f"{self.run / MODEL if self.run else self.source}: {error}") from None

    def _expanded(self, model: CausalLM, trained: bool) -> CausalLM:
        deviation = float(getattr(self.config, "initializer_range", 0.02))
        for number in self.expand:
            layer = Layer(*model.mlp_layers(number))
            if trained:
                copy_units(model, layer, self.added, self.added_scale)
            else:
                add_units(model, layer, self.added, deviation, deviation)
            model.added[number] = self.added
        return model

    def outline(self, **found: Any) -> CausalLM:
        """Return the same model on the meta device, with random weights."""
        with meta():
            return self._expanded(self._random(), trained=False)

    def kept(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Return the files with the model's configuration and the tokenizer."""
        model = json.dumps({"end": tokenizer.end_name, "config": _plain(self.config)}, indent=2) + "\n"
        return {MODEL: model, TOKENIZER: tokenizer.to_json()}


def _plain(config: Any) -> dict[str, Any]:
    """Return the settings that the model's kind defines, as plain data; paths and remote code are not among them."""
    known = _known(config.model_type, "model")
    try:
        plain: dict[str, Any] = json.loads(json.dumps({k: v for k, v in config.to_dict().items() if k in known}))
    except (TypeError, ValueError) as error:
        raise UserError(f"a {config.model_type} cannot be the model of a run [{reason(error)}]") from None
    return {"model_type": config.model_type, **plain}


def _known(kind: object, where: str) -> set[str]:
    """Return the settings' names of a kind of model. Raises: UserError if it cannot be the model of a run."""
    auto = package("transformers", where).models.auto
    kinds = auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if not isinstance(kind, str) or kind not in kinds:
        raise UserError(f"{where}: {unknown('kind of causal language model', kind, kinds)}")
    try:
        made = auto.configuration_auto.CONFIG_MAPPING[kind]
        if made.sub_configs:
            raise ValueError("it is made of several models")
        return {name for name in made().to_dict() if name[:1] != "_" and name not in LEFT_OUT}
    except Exception as error:  # also of a kind without defaults
        raise UserError(f"{where}: a {kind} cannot be the model of a run [{reason(error)}]") from None


def _checked(plain: Mapping[str, Any], where: str) -> Any:
    """Return the configuration object of plain settings. Raises: UserError, naming `where`."""
    given = dict(plain)
    kind = given.pop("model_type", None)
    if odd := given.keys() - _known(kind, where):
        raise UserError(f"{where}: '{min(odd)}' is not a setting of a {kind}")
    _require_bounded(given, where)
    try:
        config = package("transformers", where).models.auto.configuration_auto.CONFIG_MAPPING[kind](**given)
        if type(config.vocab_size) is not int or config.vocab_size < 1:
            raise ValueError(f"vocab_size={config.vocab_size}")
    except Exception as error:  # any error of their checks
        raise UserError(f"{where}: its settings are not valid for a {kind} [{reason(error)}]") from None
    return config


def _require_bounded(value: Any, where: str, key: str = "") -> None:
    """Raise UserError for a number that would make more modules or larger tensors than any model has."""
    largest = MANY if "layer" in key or "expert" in key else NUMBER
    if isinstance(value, int) and abs(value) > largest:
        raise UserError(f"{where}: {key}={value}: must be at most {largest}")
    children = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, child in children:
        _require_bounded(child, where, str(name) if isinstance(value, dict) else key)


def _end(source: str, config: Any) -> str | int:
    """Return the token that ends a document: by the tokenizer's settings, else the model's, else `<|endoftext|>`."""
    path = file_of(source, "tokenizer_config.json")
    settings = read_json(path.read_bytes(), path, any_number=True) if path is not None else {}
    said = settings.get("eos_token") if isinstance(settings, dict) else None
    said = said.get("content") if isinstance(said, dict) else said
    if isinstance(said, str):
        return said
    number = getattr(config, "eos_token_id", None)
    number = number[0] if isinstance(number, list) and number else number
    return number if isinstance(number, int) else tokenizing.END
