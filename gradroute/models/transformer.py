"""A small decoder-only transformer, pre-norm. Its sites are its modules' names.

`blocks.3` is the residual stream after layer 3, `blocks.3.mlp.act` the hidden activations of its MLP,
`blocks.3.attn.heads` its heads' results, concatenated, before they are mixed into `blocks.3.attn`.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from torch import nn

from gradroute.config.limits import WIDTH, Between, require
from gradroute.data.text.packing import separated
from gradroute.errors import UserError, unknown
from gradroute.models.added_units import add_units
from gradroute.models.layer_parts import Place
from gradroute.models.logits import Divided
from gradroute.routing.expansion import Layer

MLPS, POSITIONS, NORMS = ("gelu", "swiglu"), ("learned", "rotary"), ("layernorm", "rmsnorm")
Rotation = tuple[torch.Tensor, torch.Tensor]  # cosine and sine, (batch or 1, 1, length, head width / 2)


@dataclass(frozen=True)
class TransformerConfig:
    """Sizes and kinds, checked on creation. Raises: UserError for values out of range, or that do not fit together.

    hidden: units of each MLP; None is 4 × width for `gelu`, 8/3 × width rounded up to a multiple of 8 for `swiglu`.
    context: the longest sequence, in tokens.
    """

    vocabulary: int
    layers: int
    width: int
    heads: int
    context: int
    hidden: int | None = None
    mlp: str = "gelu"
    positions: str = "learned"
    norm: str = "layernorm"
    tied: bool = True
    bias: bool = True

    def __post_init__(self) -> None:
        for name in ("vocabulary", "layers", "width", "heads", "context", "units"):
            if getattr(self, name) < 1:
                raise UserError(f"transformer: {name}={getattr(self, name)}: must be 1 or more")
        for name, valid in (("mlp", MLPS), ("positions", POSITIONS), ("norm", NORMS)):
            if getattr(self, name) not in valid:
                raise unknown(f"{name} of a transformer:", getattr(self, name), valid)
        if self.width % self.heads:
            raise UserError(f"transformer: width={self.width} is not a multiple of heads={self.heads}")
        if self.positions == "rotary" and self.width // self.heads % 2:
            raise UserError(f"transformer: rotary positions need heads of even width, not {self.width // self.heads}")

    @property
    def units(self) -> int:
        """Hidden units of each MLP."""
        if self.hidden is not None:
            return self.hidden
        return 4 * self.width if self.mlp == "gelu" else math.ceil(self.width / 3) * 8


def rotate(x: torch.Tensor, rotation: Rotation) -> torch.Tensor:
    """Rotate pairs of features, `(batch, heads, length, head width)`; i and i + half are a pair (Su et al. 2021)."""
    (cos, sin), (left, right) = rotation, x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1).to(x.dtype)


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values have separate layers, so that heads can be added."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.num_heads, self.head_width = config.heads, config.width // config.heads
        self.query, self.key, self.value, self.out = (
            nn.Linear(config.width, config.width, bias=config.bias) for _ in range(4)
        )
        self.heads = nn.Identity()

    def forward(self, x: torch.Tensor, rotation: Rotation | None, mask: torch.Tensor | None) -> torch.Tensor:
        """Map `(batch, length, width)` to the same; `mask` is true where a position may attend, None is causal."""
        size = (*x.shape[:2], self.num_heads, self.head_width)
        query, key, value = (layer(x).view(size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, rotation), rotate(key, rotation)
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)
        result: torch.Tensor = self.out(self.heads(mixed.transpose(1, 2).flatten(2)))
        return result


class Gated(nn.Module):
    """SwiGLU's activation: silu(gate) * up (Shazeer 2020)."""

    def forward(self, up: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Multiply two tensors of one shape."""
        return F.silu(gate) * up


class MLP(nn.Module):
    """Two layers with GELU between, or three as SwiGLU; `act` outputs the hidden activations."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.units, bias=config.bias) if config.mlp == "swiglu" else None
        self.up = nn.Linear(config.width, config.units, bias=config.bias)
        self.act = nn.GELU() if self.gate is None else Gated()
        self.down = nn.Linear(config.units, config.width, bias=config.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        given = () if self.gate is None else (self.gate(x),)
        result: torch.Tensor = self.down(self.act(self.up(x), *given))
        return result


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn_norm, self.attn = _norm(config), Attention(config)
        self.mlp_norm, self.mlp = _norm(config), MLP(config)

    def forward(self, x: torch.Tensor, rotation: Rotation | None, mask: torch.Tensor | None) -> torch.Tensor:
        """Map the residual stream before the layer, `(batch, length, width)`, to that after it."""
        x = x + self.attn(self.attn_norm(x), rotation, mask)
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result


class Transformer(Divided):
    """Decoder-only transformer; weights are normal with std 0.02, less in layers that add to the stream (GPT-2)."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config, self.added = config, dict[int, int]()
        self.layer_count, self.head_count = config.layers, config.heads
        self.embed = nn.Embedding(config.vocabulary, config.width)
        self.position = nn.Embedding(config.context, config.width) if config.positions == "learned" else None
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = _norm(config)
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
            return Place(f"blocks.{layer}.attn.heads", None, self.config.width)
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
        return F.linear(features, self.unembedding)

    def _rotation(self, positions: torch.Tensor) -> Rotation:
        half = self.config.width // self.config.heads // 2
        speeds = 10000.0 ** (-torch.arange(half, device=positions.device) / half)
        angles = positions[:, None, :, None] * speeds
        return angles.cos(), angles.sin()


def _norm(config: TransformerConfig) -> nn.Module:
    return nn.LayerNorm(config.width) if config.norm == "layernorm" else nn.RMSNorm(config.width, eps=1e-6)


Size = Annotated[int, Between(1, WIDTH)]


def build_transformer(
    vocabulary: int, context: int, layers: Size = 4, width: Size = 128, heads: Size = 4, hidden: Size | None = None,
    mlp: Literal["gelu", "swiglu"] = "gelu", positions: Literal["learned", "rotary"] = "learned",
    norm: Literal["layernorm", "rmsnorm"] = "layernorm", tied: bool = True, bias: bool = True,
    expand: Sequence[int] = (), added: Annotated[int, Between(0, WIDTH)] = 0,
) -> Transformer:  # fmt: skip
    """Build an untrained transformer; added units are initialised like the others (GR section 4.2.2).

    Args:
        vocabulary, context: number of tokens, and the longest sequence; the run supplies both.
        expand: layers whose MLPs get `added` units more than `hidden`.

    Raises: UserError for sizes that do not fit together.
    """
    check_expansion(expand, added, layers)
    config = TransformerConfig(vocabulary, layers, width, heads, context, hidden, mlp, positions, norm, tied, bias)
    model = Transformer(config)
    for number in expand:
        add_units(model, Layer(*model.mlp_layers(number)), added, 0.02, 0.02 / (2 * layers) ** 0.5)
        model.added[number] = added
    return model


build_transformer.task = "language"  # type: ignore[attr-defined]  # its task, as a class states it


def check_expansion(expand: Sequence[int], added: int, layers: int) -> None:
    """Raise UserError for layers out of range, layers without added units, or added units without layers."""
    for layer in expand:
        require(0 <= layer < layers, "model.expand", layer, f"from 0 to {layers - 1}")
    require(bool(expand) == bool(added), "model.added", added, "more than 0 if, and only if, model.expand names layers")
