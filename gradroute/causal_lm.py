"""Any causal language model of Hugging Face `transformers` as an ordinary module (extra `gradroute[hf]`).

Its sites are the names of its modules below `model`: `model.transformer.h.3.mlp.act` of a GPT-2,
`model.gpt_neox.layers.3.mlp.act` of a GPT-NeoX. A layer that is no `torch.nn.Linear`, as in GPT-2, can be a site, but
its rows are not found as the producer of one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.errors import HF_EXTRA, UserError
from gradroute.transformer import separated


class CausalLM(nn.Module):
    """`model`, of `transformers`, with the calling convention of `gradroute.transformer.Transformer`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def unembedding(self) -> torch.Tensor:
        """The matrix that makes logits, `(vocabulary, width)`."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None where the model's configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def forward(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Logits `(batch, length, vocabulary)` of the token after each of `tokens`, `(batch, length)` int64.

        Args:
            document_ids: `(batch, length)`; a run of one number is one document: positions start anew in each, and none
                sees another. None: each row is one document.

        Raises: UserError if a row is longer than the context.
        """
        if self.context is not None and tokens.shape[1] > self.context:
            raise UserError(f"a sequence of {tokens.shape[1]} tokens is longer than the model's context={self.context}")
        given: dict[str, torch.Tensor] = {}
        if document_ids is not None:
            positions, sees = separated(document_ids)
            lowest = torch.finfo(self.model.dtype).min
            mask = torch.zeros(sees.shape, dtype=self.model.dtype, device=tokens.device).masked_fill(~sees, lowest)
            given = {"position_ids": positions, "attention_mask": mask}
        logits: torch.Tensor = self.model(input_ids=tokens, use_cache=False, **given).logits
        return logits


def load(source: Any) -> CausalLM:
    """A pretrained model by its name on the hub or its local folder, or one with random weights from a config object.

    Raises: UserError if the package is missing, the model cannot be loaded, or the config is of no causal model.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"model '{source}' needs the package transformers: {HF_EXTRA}") from None
    named = isinstance(source, str | Path)
    try:
        if named:
            return CausalLM(transformers.AutoModelForCausalLM.from_pretrained(str(source)))
        return CausalLM(transformers.AutoModelForCausalLM.from_config(source))
    except Exception as error:  # whatever the hub, the network or the files raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        what = f"'{source}'" if named else f"from a {type(source).__name__}"
        raise UserError(f"model {what}: is no causal language model that can be loaded [{reason}]") from None
