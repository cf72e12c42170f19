"""The layers of the decoder-only transformer, and its sizes and kinds."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from gradroute.errors import UserError, unknown

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

    def to_dict(self) -> dict[str, Any]:
        """Return the settings by name; peft, of some versions, asks a model's configuration for them so."""
        return asdict(self)

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


def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return softmax attention of `(batch, heads, length, head width)`; see `Attention.forward` for `mask`.

    On a CPU it is computed in float32 even under autocast: there, PyTorch's backward pass in bfloat16 is four times as
    slow.
    """
    if query.device.type == "cpu":
        precision = torch.promote_types(query.dtype, torch.float32)
        query, key, value = query.to(precision), key.to(precision), value.to(precision)
    with torch.autocast(query.device.type, enabled=False):
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=mask is None)


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
        mixed = attend(query, key, value, mask)
        result: torch.Tensor = self.out(self.heads(mixed.transpose(1, 2).flatten(2)))
        return result


class Gated(nn.Module):
    """SwiGLU's activation: silu(gate) * up (Shazeer 2020)."""

    def forward(self, up: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Multiply two tensors of one shape."""
        return F.silu(gate) * up


class Beside(nn.Module):
    """A module beside a layer's MLP: a small MLP of its own, whose output is added (GRAM, arXiv 2607.08077).

    `dose` multiplies its output; at 0 it is not computed. A tensor `(batch, 1, 1)` has a dose for each row.
    """

    def __init__(self, config: TransformerConfig, units: int) -> None:
        super().__init__()
        self.up, self.act = nn.Linear(config.width, units, bias=config.bias), nn.GELU()
        self.down = nn.Linear(units, config.width, bias=config.bias)
        self.dose: float | torch.Tensor = 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        if isinstance(self.dose, float) and self.dose == 0:
            return torch.zeros_like(x)
        result: torch.Tensor = self.down(self.act(self.up(x)))
        return result if isinstance(self.dose, float) and self.dose == 1 else result * self.dose


class MLP(nn.Module):
    """Two layers with GELU between, or three as SwiGLU; `act` outputs the hidden activations.

    `beside` holds modules by name, which read the same input and add to the output.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.width, config.units, bias=config.bias) if config.mlp == "swiglu" else None
        self.up = nn.Linear(config.width, config.units, bias=config.bias)
        self.act = nn.GELU() if self.gate is None else Gated()
        self.down = nn.Linear(config.units, config.width, bias=config.bias)
        self.beside = nn.ModuleDict()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        given = () if self.gate is None else (self.gate(x),)
        result: torch.Tensor = self.down(self.act(self.up(x), *given))
        for module in self.beside.values():
            result = result + module(x)
        return result


def norm_of(config: TransformerConfig) -> nn.Module:
    """Return an untrained norm over the residual stream."""
    return nn.LayerNorm(config.width) if config.norm == "layernorm" else nn.RMSNorm(config.width, eps=1e-6)


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.attn_norm, self.attn = norm_of(config), Attention(config)
        self.mlp_norm, self.mlp = norm_of(config), MLP(config)

    def forward(self, x: torch.Tensor, rotation: Rotation | None, mask: torch.Tensor | None) -> torch.Tensor:
        """Map the residual stream before the layer, `(batch, length, width)`, to that after it."""
        x = x + self.attn(self.attn_norm(x), rotation, mask)
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result
