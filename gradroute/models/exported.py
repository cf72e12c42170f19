"""A language model from config.json and the weights beside this file; needs torch and safetensors only.

A Hugging Face model with weights in 8 or 4 bits needs transformers, too.

from model import load
model = load()                  # or load("another/folder")
logits = model(tokens)          # (batch, length) int64 to (batch, length, vocabulary)
"""

import json
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn


class Attention(nn.Module):
    """Causal self-attention of `size` features, in heads of `head` features each."""

    def __init__(self, config: dict[str, Any], size: int) -> None:
        super().__init__()
        width, bias, self.head = config["width"], config["bias"], config["head_width"]
        self.query, self.key, self.value = (nn.Linear(width, size, bias=bias) for _ in range(3))
        self.out = nn.Linear(size, width, bias=bias)

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        size = (*x.shape[:2], -1, self.head)
        query, key, value = (layer(x).view(size).transpose(1, 2) for layer in (self.query, self.key, self.value))
        if rotation is not None:
            query, key = rotate(query, *rotation), rotate(key, *rotation)
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        result: torch.Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotate pairs of features of `(batch, heads, length, head)`; i and i + half are a pair."""
    left, right = x.chunk(2, -1)
    return torch.cat([left * cos - right * sin, right * cos + left * sin], -1)


class Beside(nn.Module):
    """A module beside an MLP, whose output is added."""

    def __init__(self, config: dict[str, Any], units: int) -> None:
        super().__init__()
        self.up = nn.Linear(config["width"], units, bias=config["bias"])
        self.down = nn.Linear(units, config["width"], bias=config["bias"])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        result: torch.Tensor = self.down(F.gelu(self.up(x)))
        return result


class MLP(nn.Module):
    """Two layers with GELU between, or three as SwiGLU, and the modules beside them."""

    def __init__(self, config: dict[str, Any], units: int) -> None:
        super().__init__()
        width, bias, gated = config["width"], config["bias"], config["mlp"] == "swiglu"
        self.gate = nn.Linear(width, units, bias=bias) if gated else None
        self.up, self.down = nn.Linear(width, units, bias=bias), nn.Linear(units, width, bias=bias)
        self.beside = nn.ModuleDict({name: Beside(config, size) for name, size in config["modules"].items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map `(batch, length, width)` to the same."""
        up = self.up(x)
        result: torch.Tensor = self.down(F.gelu(up) if self.gate is None else F.silu(self.gate(x)) * up)
        for module in self.beside.values():
            result = result + module(x)
        return result


class Block(nn.Module):
    """One layer: attention and MLP, each after a norm and added to the residual stream."""

    def __init__(self, config: dict[str, Any], layer: int) -> None:
        super().__init__()
        self.attn_norm, self.attn = norm_of(config), Attention(config, config["heads"][layer] * config["head_width"])
        self.mlp_norm, self.mlp = norm_of(config), MLP(config, config["units"][layer])

    def forward(self, x: torch.Tensor, rotation: tuple[torch.Tensor, torch.Tensor] | None) -> torch.Tensor:
        """Map the residual stream before the layer to that after it."""
        x = x + self.attn(self.attn_norm(x), rotation)
        result: torch.Tensor = x + self.mlp(self.mlp_norm(x))
        return result


def norm_of(config: dict[str, Any]) -> nn.Module:
    """Return a norm over the residual stream."""
    width = config["width"]
    return nn.LayerNorm(width) if config["norm"] == "layernorm" else nn.RMSNorm(width, eps=1e-6)


class Model(nn.Module):
    """A decoder-only transformer, pre-norm."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.settings = config
        self.embed = nn.Embedding(config["vocabulary"], config["width"])
        learned = config["positions"] == "learned"
        self.position = nn.Embedding(config["context"], config["width"]) if learned else None
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(len(config["units"])))
        self.norm = norm_of(config)
        self.unembed = None if config["tied"] else nn.Linear(config["width"], config["vocabulary"], bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return logits `(batch, length, vocabulary)` of `tokens` `(batch, length)`, each row one document."""
        places, rotation = torch.arange(tokens.shape[1], device=tokens.device)[None], None
        x = self.embed(tokens)
        if self.position is not None:
            x = x + self.position(places)
        else:
            half = self.settings["head_width"] // 2
            angles = places[:, None, :, None] * 10000.0 ** (-torch.arange(half, device=tokens.device) / half)
            rotation = angles.cos(), angles.sin()
        for block in self.blocks:
            x = block(x, rotation)
        return F.linear(self.norm(x), (self.unembed or self.embed).weight)


def whole_numbers(weight: torch.Tensor, bits: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a matrix in whole numbers of `bits` bits, as floats, and the scale of each row: symmetric."""
    largest = 2 ** (bits - 1) - 1
    scale = weight.abs().amax(1, keepdim=True).clamp(min=1e-12) / largest
    return (weight / scale).round().clamp(-largest, largest), scale


def quantised(weight: torch.Tensor, bits: int) -> dict[str, torch.Tensor]:
    """Return a matrix in 8 or 4 bits, with a scale for each row; two numbers of 4 bits in a byte."""
    numbers, scale = whole_numbers(weight, bits)
    whole = numbers.to(torch.int8)
    if bits == 8:
        return {"int8": whole, "scale": scale}
    if whole.shape[1] % 2:
        whole = F.pad(whole, (0, 1))
    shifted = (whole + 8).to(torch.uint8)
    return {"int4": shifted[:, ::2] * 16 + shifted[:, 1::2], "scale": scale}


def restored(parts: dict[str, torch.Tensor], columns: int) -> torch.Tensor:
    """Return the float32 matrix of what `quantised` returned."""
    if "int8" in parts:
        return parts["int8"].float() * parts["scale"]
    pairs = torch.stack([parts["int4"] // 16, parts["int4"] % 16], 2).flatten(1)[:, :columns]
    return (pairs.float() - 8) * parts["scale"]


def from_transformers(folder: Path) -> nn.Module:
    """Return an untrained Hugging Face model of the configuration in a folder; needs transformers."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model: nn.Module = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    return model.float()


def load(folder: str | Path = Path(__file__).parent) -> nn.Module:
    """Return the model in a folder, in evaluation mode and in float32."""
    folder = Path(folder)
    config = json.loads((folder / "config.json").read_text())
    model = from_transformers(folder) if "model_type" in config else Model(config)
    (file,) = folder.glob("*.safetensors")
    tensors, found = load_file(file), {}
    for name, own in model.state_dict().items():
        kinds = {kind: tensors[f"{name}.{kind}"] for kind in ("int8", "int4", "scale") if f"{name}.{kind}" in tensors}
        if kinds or name in tensors:
            found[name] = restored(kinds, own.shape[1]) if kinds else tensors[name]
    known = {own.data_ptr() for name, own in model.state_dict().items() if name in found}
    if lost := [name for name, own in model.state_dict().items() if own.data_ptr() not in known]:
        raise ValueError(f"{file}: has no {lost[0]}")  # what is tied to another matrix is stored once
    model.load_state_dict(found, strict=False)
    return model.eval()
