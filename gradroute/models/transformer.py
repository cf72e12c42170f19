"""A small decoder-only transformer, pre-norm. Its sites are its modules' names.

`blocks.3` is the residual stream after layer 3, `blocks.3.mlp.act` the hidden activations of its MLP,
`blocks.3.attn.heads` its heads' results, concatenated, before they are mixed into `blocks.3.attn`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from gradroute.config.limits import WIDTH, Between, require
from gradroute.data.text.packing import separated
from gradroute.errors import UserError
from gradroute.models.added_units import add_units
from gradroute.models.beside import add_beside
from gradroute.models.layer_parts import Place
from gradroute.models.logits import Divided
from gradroute.models.transformer_layers import Block, Rotation, TransformerConfig, norm_of
from gradroute.routing.expansion import Layer


class Transformer(Divided):
    """Decoder-only transformer; weights are normal with std 0.02, less in layers that add to the stream (GPT-2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.added, self.added_heads = config, dict[int, int](), dict[int, int]()
        self.layer_count, self.head_count = config.layers, config.heads
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = norm_of(config)
        self.unembed = None if config.tied else nn.Linear(config.width, config.vocabulary, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                adds = name.endswith(("attn.out", "mlp.down"))
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.layers if adds else 1))
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    @property
    def unembedding(self) -> torch.Tensor:
        """The matrix that maps to logits, `(vocabulary, width)`; the embedding's own if tied."""
        return self.embed.weight if self.unembed is None else self.unembed.weight

    def place(self, part: str, layer: int) -> Place:
        """Return the site of a layer's `mlp`, `heads` or `residual`."""
        if part == "residual":
            return Place(f"blocks.{layer}", None, self.config.width)
        if part == "heads":
            return Place(f"blocks.{layer}.attn.heads", None, self.config.width + self.added_heads.get(layer, 0))
        return Place(f"blocks.{layer}.mlp.act", None, self.config.units + self.added.get(layer, 0))

    def mlp_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's MLP units: `Layer(*model.mlp_layers(3))`.

        Raises: UserError if there is no such layer.
        """
        if not 0 <= layer < len(self.blocks):
            raise UserError(f"layer {layer} is out of range; layers go from 0 to {len(self.blocks) - 1}")
        mlp = f"blocks.{layer}.mlp"
        producers = (f"{mlp}.gate", f"{mlp}.up") if self.config.mlp == "swiglu" else (f"{mlp}.up",)
        return producers, (f"{mlp}.down",)

    def head_layers(self, layer: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return names of the modules that make and read a layer's heads."""
        attn = f"blocks.{layer}.attn"
        return (f"{attn}.query", f"{attn}.key", f"{attn}.value"), (f"{attn}.out",)

    def layer_at(self, site: str) -> Layer | None:
        """Return the modules around a site of heads or of an MLP's units, for `contract`; None at other sites."""
        inner, _, last = site.rpartition(".")
        if last == "heads":
            number, width = int(inner.split(".")[1]), self.config.width // self.config.heads
            return Layer(*self.head_layers(number), width=width, count=(f"{inner}.num_heads",))
        if last != "act":
            return None
        gate = (f"{inner}.gate",) if self.config.mlp == "swiglu" and inner.endswith(".mlp") else ()
        return Layer((*gate, f"{inner}.up"), (f"{inner}.down",))

    def features(self, tokens: torch.Tensor, document_ids: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the output matrix maps to logits, `(batch, length, width)`; see `forward`.

        Raises: UserError if a row is longer than the context.
        """
        length = tokens.shape[1]
        if length > self.config.context:
            raise UserError(f"a sequence of {length} tokens is longer than the model's context={self.config.context}")
        positions, mask, rotation = torch.arange(length, device=tokens.device)[None], None, None
        if document_ids is not None:
            positions, mask = separated(document_ids)
        x = self.embed(tokens)
        if self.position is None:
            rotation = self._rotation(positions)
        else:
            x = x + self.position(positions)
        for block in self.blocks:
            x = block(x, rotation, mask)
        normed: torch.Tensor = self.norm(x)
        return normed

    def logits(self, features: torch.Tensor) -> torch.Tensor:
        """Return the logits of features, `(…, width)` to `(…, vocabulary)`."""
        if self.unembed is None:
            return F.linear(features, self.embed.weight)
        logits: torch.Tensor = self.unembed(features)  # by the layer, not by its weight: hooks see it
        return logits

    def _rotation(self, positions: torch.Tensor) -> Rotation:
        half = self.config.width // self.config.heads // 2
        speeds = 10000.0 ** (-torch.arange(half, device=positions.device) / half)
        angles = positions[:, None, :, None] * speeds
        return angles.cos(), angles.sin()


Size = Annotated[int, Between(1, WIDTH)]


def build_transformer(
    vocabulary: int, context: int, layers: Size = 4, width: Size = 128, heads: Size = 4, hidden: Size | None = None,
    mlp: Literal["gelu", "swiglu"] = "gelu", positions: Literal["learned", "rotary"] = "learned",
    norm: Literal["layernorm", "rmsnorm"] = "layernorm", tied: bool = True, bias: bool = True,
    expand: Sequence[int] = (), added: Annotated[int, Between(0, WIDTH)] = 0,
    added_heads: Annotated[int, Between(0, WIDTH)] = 0, modules: Mapping[str, Size] | None = None,
) -> Transformer:  # fmt: skip
    """Build an untrained transformer; added units are initialised like the others (GR section 4.2.2).

    Args:
        vocabulary, context: number of tokens, and the longest sequence; the run supplies both.
        expand: layers that are widened: the MLP by `added` units, the attention by `added_heads` heads.
        modules: modules beside the MLP of every layer, by name, and their numbers of units.

    Raises: UserError for sizes that do not fit together.
    """
    check_expansion(expand, added + added_heads, layers)
    config = TransformerConfig(vocabulary, layers, width, heads, context, hidden, mlp, positions, norm, tied, bias)
    model = Transformer(config)
    add_beside(model, config, modules or {})
    spread = 0.02, 0.02 / (2 * layers) ** 0.5
    for number in expand if added else ():
        add_units(model, Layer(*model.mlp_layers(number)), added, *spread)
        model.added[number] = added
    for number in expand if added_heads else ():
        layer = model.layer_at(f"blocks.{number}.attn.heads")
        assert layer is not None
        add_units(model, layer, added_heads, *spread)
        model.added_heads[number] = added_heads * (config.width // config.heads)
    return model


build_transformer.task = "language"  # type: ignore[attr-defined]  # its task, as a class states it


def check_expansion(expand: Sequence[int], added: int, layers: int) -> None:
    """Raise UserError for layers out of range, layers without added units, or added units without layers."""
    for layer in expand:
        require(0 <= layer < layers, "model.expand", layer, f"from 0 to {layers - 1}")
    require(bool(expand) == bool(added), "model.added", added, "more than 0 if, and only if, model.expand names layers")
