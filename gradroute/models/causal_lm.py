"""Any causal language model of Hugging Face `transformers` as an ordinary module (extra `gradroute[hf]`).

Its sites are the names of its modules below `model`: `model.transformer.h.3.mlp.act` of a GPT-2,
`model.gpt_neox.layers.3.mlp.act` of a GPT-NeoX. A layer that is not a `torch.nn.Linear`, as in GPT-2, can be a
site, but is not found as the producer of one.
"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradroute.data.hub import package, reason
from gradroute.errors import UserError
from gradroute.models.transformer import separated

MLPS = (  # names of an MLP's layers: those that make its units, then the one that reads them
    ("gate_proj", "up_proj", "down_proj"), ("dense_h_to_4h", "dense_4h_to_h"), ("c_fc", "c_proj"), ("fc_in", "fc_out"),
    ("fc1", "fc2"),
)  # fmt: skip


class CausalLM(nn.Module):
    """A `transformers` model with the calling convention of `gradroute.models.transformer.Transformer`."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @property
    def unembedding(self) -> torch.Tensor:
        """The matrix that maps to logits, `(vocabulary, width)`."""
        weight: torch.Tensor = self.model.get_output_embeddings().weight
        return weight

    @property
    def context(self) -> int | None:
        """The longest sequence, in tokens; None if the model's configuration does not say."""
        return getattr(self.model.config, "max_position_embeddings", None)

    def mlp_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's MLP units: `Layer(*model.mlp_layers(3))`.

        Raises: UserError if there is no such layer, or its MLP is of an unknown kind or not made of `torch.nn.Linear`.
        """
        count = self.model.config.num_hidden_layers
        if not 0 <= layer < count:
            raise UserError(f"layer {layer} is out of range; layers go from 0 to {count - 1}")
        lists = [n for n, m in self.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
        block = self.get_submodule(f"{lists[0]}.{layer}") if lists else nn.Module()
        for place, module in [("", block), *((f".{name}", child) for name, child in block.named_children())]:
            children = dict(module.named_children())
            for names in (names for names in MLPS if children.keys() >= set(names)):
                if odd := [name for name in names if not isinstance(children[name], nn.Linear)]:
                    kind = f"'{odd[0]}' of its MLP is a {type(children[odd[0]]).__name__}"
                    raise UserError(f"layer {layer}: {kind}; units can be added to torch.nn.Linear only")
                *producers, consumer = (f"{lists[0]}.{layer}{place}.{name}" for name in names)
                return tuple(producers), (consumer,)
        raise UserError(f"layer {layer}: it has no MLP of a known kind; add no units, or choose another model")

    @torch.no_grad()
    def require_separation(self) -> None:
        """Raise UserError if packed documents affect each other, as with a recurrent state; try it on one row."""
        device, count = self.unembedding.device, self.model.config.vocab_size
        tokens = (torch.arange(10, device=device) * 7 % count)[None]
        try:
            packed = self(tokens, torch.tensor([[0] * 4 + [1] * 6], device=device))[:, 4:]
            alone = self(tokens[:, 4:])
        except Exception as error:  # any error of a model that takes no masks or positions
            right = "choose an attention-only model"
            raise UserError(f"the model takes no packed documents [{reason(error)}]; {right}") from None
        if not torch.allclose(packed, alone, rtol=1e-3, atol=1e-4 * float(alone.abs().max())):
            raise UserError("the model does not keep documents of a row apart; choose an attention-only model")

    def forward(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return logits `(batch, length, vocabulary)` of the token after each of `tokens`, `(batch, length)` int64.

        Args:
            document_ids: `(batch, length)`; a run of equal numbers is one document: positions restart in each, and none
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


def load(source: Any, config: Any = None) -> CausalLM:
    """Load a pretrained model, or make one with random weights from a config object.

    It is in float32, and in evaluation mode, so dropout is off. No code that comes with a model is run.

    Args:
        source: a name on the hub, a local folder, or a config object.
        config: a config object for a pretrained model, in place of its own.

    Raises: UserError if the package is missing, the model cannot be loaded, weights of it are missing, or the config
        is not that of a causal model.
    """
    named = isinstance(source, str | Path)
    what = f"model '{source}'" if named else f"model from a {type(source).__name__}"
    make = package("transformers", what).AutoModelForCausalLM
    try:
        if named:
            place = Path(source).expanduser()
            name, own = str(place) if place.is_dir() else str(source), {} if config is None else {"config": config}
            model, found = make.from_pretrained(name, trust_remote_code=False, output_loading_info=True, **own)
        else:
            model, found = make.from_config(source, trust_remote_code=False), {}
    except Exception as error:  # any error of the hub, the network or the files
        raise UserError(f"{what}: cannot be loaded as a causal language model [{reason(error)}]") from None
    if missing := sorted(found.get("missing_keys", ())):  # would be drawn at random
        raise UserError(f"{what}: its weights lack {missing[0]}, which its configuration requires")
    return CausalLM(model).float().eval()
