"""Give a model an adapter (LoRA) for an attack that trains nothing else."""

import copy
from typing import Any

import torch
from torch import nn

from gradroute.config.schema import RegionConfig
from gradroute.errors import UserError
from gradroute.models.adapters import add_adapters, wrapped

ATTACKER = "attacker"
LAYERS = (nn.Linear, nn.Conv2d)


def adapted(model: nn.Module, rank: int, seed: int) -> nn.Module:
    """Return a copy of a model of which only an adapter trains, on every linear layer and convolution but the output.

    Layers with a side smaller than the rank get none. The adapter computes nothing yet;
    `seed` draws its first weights.

    Raises: UserError if `peft` is missing or refuses the model, or no layer is left.
    """
    copied = copy.deepcopy(model)
    output = getattr(copied, "unembedding", None)
    layers = [name for name, module in wrapped(copied).named_modules()
              if isinstance(module, LAYERS) or type(module).__name__ == "Conv1D"]  # fmt: skip
    weights: dict[str, Any] = {name: wrapped(copied).get_submodule(name).weight for name in layers}
    chosen = [name for name, weight in weights.items() if min(weight.shape[:2]) >= rank and weight is not output]
    if not chosen:
        raise UserError(f"audit.rank={rank}: no layer is as large; lower it")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        add_adapters(copied, {ATTACKER: RegionConfig(adapter=ATTACKER, of=chosen, rank=rank)})
    return copied.eval()
