"""The part of the typed schema that only language models have."""

from dataclasses import dataclass, field


@dataclass
class TextConfig:
    """Documents, and how they become tokens.

    files: of `dataset=text`, a file or a folder, with the text of a row in `field`. hub: a data set by its name on the
    Hugging Face hub, or a local folder that `datasets` reads; its `split` to train on and its `test_split`, or if that
    is null the split's last documents to test on. concept, share: of `dataset=toy_stories`, how often which concept is
    told. stories, test_stories: documents to train and to test on; null takes all. tokenizer: `words`, `bpe`, the path
    of a tokenizer.json, or `pretrained`, which is `model.hf`'s own; at most `vocabulary` tokens, of a BPE exactly so
    many. length: tokens of a row, in which documents are packed.
    """

    files: str | None = None
    hub: str | None = None
    split: str = "train"
    test_split: str | None = None
    field: str = "text"
    concept: str = "forest"
    share: float = 0.2
    stories: int | None = 4000
    test_stories: int = 1000
    tokenizer: str = "words"
    vocabulary: int | None = None
    length: int = 128


@dataclass
class TransformerSizes:
    """Sizes and kinds of a transformer, as in `gradroute.models.transformer`; its context is `dataset.text.length`.

    expand: the layers whose MLPs have `added` units more than `hidden` (GR section 4.2.2).
    """

    layers: int = 4
    width: int = 128
    heads: int = 4
    hidden: int | None = None
    mlp: str = "gelu"
    positions: str = "learned"
    norm: str = "layernorm"
    tied: bool = True
    bias: bool = True
    expand: list[int] = field(default_factory=list)
    added: int = 0


@dataclass
class HFModel:
    """A causal language model of Hugging Face `transformers`.

    pretrained: its name on the hub, or a local folder. untrained: with its sizes, but random weights by the run's seed.
    expand, added: as of a transformer, where its MLPs are made of `torch.nn.Linear`.
    """

    pretrained: str = ""
    untrained: bool = False
    expand: list[int] = field(default_factory=list)
    added: int = 0


@dataclass
class TuneConfig:
    """Training after the ablation, on few `documents` of a `group` in one batch; several numbers are several trainings.

    rate: the constant rate as a share of `trainer.lr`. samples: how often it is done with other documents. every:
    updates, of `trainer.tune_steps`, to a measurement.
    """

    group: str = ""
    documents: list[int] = field(default_factory=list)
    rate: float = 0.1
    samples: int = 1
    every: int = 1


@dataclass
class UnlearnConfig:
    """RMU, representation misdirection (Li et al. 2024, arXiv 2403.03218), for `trainer.unlearn_steps` updates.

    The residual stream at `site` is led to a random direction of length `norm` on tokens labelled `group`, and kept on
    the others with weight `retain`. layers: whose MLPs' outgoing weights are trained. rate: as a share of `trainer.lr`.
    """

    group: str = ""
    site: str = ""
    layers: list[int] = field(default_factory=list)
    norm: float = 100.0
    retain: float = 200.0
    rate: float = 1.0


@dataclass
class CompletionsConfig:
    """Texts that a language model goes on with at the end, at every stage: `prompts` by group.

    tokens: of each completion, which ends before them where its document does. samples: completions of a prompt.
    temperature: 0 takes the most likely token; above, they are drawn by the run's seed.
    """

    prompts: dict[str, list[str]] = field(default_factory=dict)
    tokens: int = 40
    samples: int = 1
    temperature: float = 1.0


@dataclass
class SteeringConfig:
    """Steering by one scalar (GR section 4.2.1), after the training.

    group: whose words were routed. site, unit: what is added to, a dimension of the residual stream after a layer.
    strengths: what is added, in the direction in which the routed words lie. related: words like the routed ones that
    were held out; of the toy stories, if empty, the others of their families, which the same sentences have. nearest:
    of so many tokens along the dimension the share of related ones is taken, and of `random` other dimensions. prompts,
    tokens, samples, temperature: what texts go on from, for how many tokens, how often, and as in `completions`.
    """

    group: str = ""
    site: str = ""
    unit: int = 0
    strengths: list[float] = field(default_factory=list)
    related: list[str] = field(default_factory=list)
    nearest: int = 20
    random: int = 20
    prompts: list[str] = field(default_factory=list)
    tokens: int = 30
    samples: int = 16
    temperature: float = 1.0
