"""What the model of a language run is made from: sizes of our own transformer, or a model of Hugging Face."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gradroute.config.language_schema import TransformerSizes
from gradroute.config.schema import Config
from gradroute.data.text.tokenizing import Tokenizer
from gradroute.models.build import build_transformer


class Plan(ABC):
    """A model before it is built.

    Attributes: `key`, where the configuration has it; `smaller`, what to do there if it is too large; `per_token`,
    numbers that a pass keeps for each token beside the logits, from below; `tokenizer`, which gives the model's own, or
    None.
    """

    key: str
    smaller: str
    tokenizer: Callable[[], Tokenizer] | None = None

    @property
    @abstractmethod
    def per_token(self) -> int: ...  # noqa: D102

    @abstractmethod
    def build(self, vocabulary: int, length: int) -> nn.Module:
        """The model as it begins, for so many tokens and rows so long. Raises: UserError if they do not fit it."""

    def outline(self, vocabulary: int, length: int) -> nn.Module:
        """The same with shapes and no numbers, on the meta device."""
        with torch.device("meta"):
            return self.build(vocabulary, length)

    def kept(self, tokenizer: Tokenizer) -> dict[str, str]:
        """Files that a run keeps to read the model back from, where its configuration does not suffice."""
        return {}


@dataclass(frozen=True)
class OwnTransformer(Plan):
    """Ours, which is new in every run."""

    sizes: TransformerSizes

    key = "model.transformer"
    smaller = "lower model.transformer.width or layers"

    @property
    def per_token(self) -> int:  # noqa: D102
        hidden = self.sizes.hidden or 4 * self.sizes.width
        return self.sizes.layers * (hidden + 6 * self.sizes.width)

    def build(self, vocabulary: int, length: int) -> nn.Module:  # noqa: D102
        return build_transformer(self.sizes, vocabulary, length)


def plan_of(config: Config, run: Path | None = None) -> Plan:
    """The model that a configuration of a language run asks for; of Hugging Face, as the folder `run` has it, if given.

    Raises: UserError if it cannot be had, or rows are longer than its context.
    """
    if config.model.transformer is not None:
        return OwnTransformer(config.model.transformer)
    assert config.model.hf is not None and config.dataset.text is not None  # by the configuration's checks
    from gradroute.models import pretrained

    hf = config.model.hf
    plan = pretrained.fetch(hf) if run is None else pretrained.read(hf, run)
    plan.check_length(config.dataset.text.length)
    return plan
