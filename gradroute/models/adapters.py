"""LoRA adapters as regions of a language model, made, saved and left out by `peft` (extra `gradroute[hf]`).

Every adapter of a run is active in every pass; the routes say which data may train which. The model's own weights are
frozen. The gradients of an adapter's *parameters* are weighed, never that of its output, through which the layers below
learn.
"""

import copy
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from gradroute.config.schema import RegionConfig
from gradroute.data.hub import package, reason
from gradroute.errors import UserError, unknown
from gradroute.models.causal_lm import CausalLM
from gradroute.records.safe_reading import open_plain, read_json
from gradroute.routing import ParameterRegion
from gradroute.routing.ablation import Ablation, without

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # files of an adapter, as `peft` names them
PREFIX = "base_model.model."  # of every name in them
DEFAULT_RANK = 8
PLAIN = {"use_dora": False, "use_rslora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {},
         "alpha_pattern": {}, "layers_to_transform": None, "lora_bias": False}  # fmt: skip


def wrapped(model: nn.Module) -> nn.Module:
    """Return the module that `peft` changes: of a Hugging Face model that one itself, so that others can load them."""
    return model.model if isinstance(model, CausalLM) else model


def adapters_in(model: nn.Module) -> list[str]:
    """Return the names of a model's adapters, in the order in which they were added."""
    return list(getattr(wrapped(model), "peft_config", {}))


def add_adapters(model: nn.Module, regions: Mapping[str, RegionConfig], read_back: bool = False) -> None:
    """Add the adapters that regions name, and freeze the model's own weights; without any, do nothing.

    A new adapter computes nothing, as `peft` initialises it. One with `start` takes weights, rank, scale and layers
    from that folder; the last three are filled into the regions, so that a run can be read back without it.

    Raises: UserError if `peft` is missing or refuses the model, a layer is not found, or a rank is too large.
    """
    chosen = {name: region for name, region in regions.items() if region.adapter is not None}
    if not chosen:
        return
    peft = package("peft", "a region with an adapter")
    for name, region in chosen.items():
        where = f"routing.regions.{name}"
        if region.start is not None and not read_back:
            _fill_in(region, where)
        targets = _targets(model, region.of, region.rank or DEFAULT_RANK, where)
        rank = region.rank or DEFAULT_RANK
        kind = "CAUSAL_LM" if isinstance(model, CausalLM) else None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there are several, and which layers are transposed
                config = peft.LoraConfig(
                    r=rank, lora_alpha=region.alpha or rank, target_modules=targets, lora_dropout=0.0, task_type=kind
                )
                peft.inject_adapter_in_model(config, wrapped(model), region.adapter)
        except Exception as error:  # peft raises many kinds for modules that it cannot adapt
            fault = f"peft cannot adapt a {type(wrapped(model)).__name__} there [{reason(error)}]"
            raise UserError(f"{where}: {fault}; name other layers in {where}.of, or another model") from None
        if region.start is not None and not read_back:
            _load(model, str(region.adapter), Path(region.start), where)
    activate(model)


def activate(model: nn.Module) -> None:
    """Make every adapter active and trainable, and nothing else trainable."""
    model.requires_grad_(False)
    for layer in layers_of(model):
        layer.set_adapter([name for name in adapters_in(model) if name in layer.r])


def layers_of(model: nn.Module) -> list[Any]:
    """Return the modules that hold a layer and its adapters."""
    kind = package("peft", "an adapter").tuners.tuners_utils.BaseTunerLayer
    return [module for module in model.modules() if isinstance(module, kind)]


def _targets(model: nn.Module, of: Sequence[str] | None, rank: int, where: str) -> list[str]:
    """Return the ends of the layers' names; null as `of` is all linear layers but the output. Raises: UserError."""
    output = getattr(model, "unembedding", None)
    base = {n.removesuffix(".base_layer"): m for n, m in wrapped(model).named_modules() if hasattr(m, "weight")}
    base = {n: m for n, m in base.items() if ".lora_" not in n and isinstance(m.weight, nn.Parameter) and n}
    outputs = {n for n, m in base.items() if m.weight is output and not isinstance(m, nn.Embedding)}
    linear = [n for n, m in base.items() if (isinstance(m, nn.Linear) or type(m).__name__ == "Conv1D")]
    chosen = sorted({name.rpartition(".")[2] for name in linear if name not in outputs}) if of is None else list(of)
    for end in chosen:
        found = [name for name in base if name == end or name.endswith(f".{end}")]
        if not found:
            raise unknown(f"layer in {where}.of:", end, sorted({name.rpartition(".")[2] for name in base}))
        for name in found:
            if name in outputs:
                fault = "is the output layer, whose logits are computed without its adapter"
                raise UserError(f"{where}.of: '{name}' {fault}; leave it out")
            if base[name].weight.dim() > 1 and rank > min(base[name].weight.shape[:2]):
                most, shape = min(base[name].weight.shape[:2]), tuple(base[name].weight.shape)
                raise UserError(f"{where}.rank={rank}: '{name}' has shape {shape}; use at most {most}")
    return chosen


def _fill_in(region: RegionConfig, where: str) -> None:
    """Take the layers, the rank and the scale of an adapter from the folder that it starts from. Raises: UserError."""
    folder = Path(str(region.start)).expanduser()
    if not (folder / CONFIG).is_file() or not (folder / WEIGHTS).is_file():
        raise UserError(
            f"{where}.start={region.start}: is not a folder of an adapter (it has no {CONFIG} and {WEIGHTS})"
        )
    with open_plain(folder / CONFIG) as file:
        found = read_json(file.read(), folder / CONFIG)
    if not isinstance(found, dict) or found.get("peft_type") != "LORA":
        raise UserError(f"{folder / CONFIG}: is no LoRA adapter; choose another")
    odd = [key for key, plain in PLAIN.items() if found.get(key, plain) not in (plain, None)]
    if odd:
        raise UserError(f"{folder / CONFIG}: {odd[0]}={found[odd[0]]} is not supported; choose a plain LoRA adapter")
    if not isinstance(found.get("target_modules"), list):
        raise UserError(f"{folder / CONFIG}: target_modules={found.get('target_modules')}: must be a list of layers")
    its = {"of": sorted(map(str, found["target_modules"])), "rank": found.get("r"), "alpha": found.get("lora_alpha")}
    for key, value in its.items():
        given = getattr(region, key)
        if given is not None and (sorted(given) if key == "of" else given) != value:
            raise UserError(f"{where}.{key}={given}: the adapter in {folder} has {value}; leave {key} out")
        setattr(region, key, value)


@torch.no_grad()
def _load(model: nn.Module, adapter: str, folder: Path, where: str) -> None:
    """Load an adapter's weights from a `peft` folder. Raises: UserError if they do not fit the model."""
    peft = package("peft", "an adapter")
    try:
        found = {name.removeprefix(PREFIX): tensor for name, tensor in load_file(folder.expanduser() / WEIGHTS).items()}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{where}.start={folder}: {WEIGHTS} cannot be read ({reason(error)})") from None
    wanted = peft.get_peft_model_state_dict(wrapped(model), adapter_name=adapter, save_embedding_layers=False)
    odd = sorted(found.keys() ^ wanted.keys())
    odd += [name for name, tensor in wanted.items() if name in found and found[name].shape != tensor.shape]
    if odd:
        raise UserError(f"{where}.start={folder}: its {odd[0]} does not fit the model; choose an adapter of this model")
    for name, tensor in wanted.items():
        tensor.copy_(found[name])


def region_of_adapter(model: nn.Module, adapter: str, where: str) -> ParameterRegion:
    """Return the region of an adapter's parameters. Raises: UserError if the model has none of this name."""
    names = [n for n, _ in model.named_parameters() if "lora_" in n and adapter in n.partition("lora_")[2].split(".")]
    if not names:
        raise UserError(f"{where}.adapter={adapter}: adapters are for language models; give task=language")
    return ParameterRegion(dict.fromkeys(names))


def left_out(region: str, adapter: str) -> Ablation:
    """Return the ablation that leaves an adapter out: of a copy of the model, which has nothing of it."""
    return without(region, lambda model: drop(model, adapter))


def drop(model: nn.Module, adapter: str) -> None:
    """Delete an adapter from a model, in place."""
    for layer in layers_of(model):
        layer.delete_adapter(adapter)
    inner: Any = wrapped(model)
    del inner.peft_config[adapter]


def save_adapter(model: nn.Module, adapter: str, folder: Path) -> None:
    """Save one adapter in a folder that `peft.PeftModel.from_pretrained` loads. Raises: UserError if there is none."""
    peft = package("peft", "an adapter")
    inner: Any = wrapped(model)
    if adapter not in adapters_in(model):
        raise unknown("adapter", adapter, adapters_in(model))
    folder.mkdir(parents=True, exist_ok=True)
    found = peft.get_peft_model_state_dict(inner, adapter_name=adapter, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in found.items()}
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    (folder / WEIGHTS).chmod(0o644)
    config = copy.deepcopy(inner.peft_config[adapter])
    config.inference_mode = True
    config.target_modules = sorted(config.target_modules)  # a set, whose order would differ between runs
    config.save_pretrained(folder)


@torch.no_grad()
def merged(model: nn.Module) -> nn.Module:
    """Return a copy of a model with its adapters added to the weights of their layers, and no adapters."""
    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if module in layers_of(plain):
            module.merge(adapter_names=adapters_in(plain))
            around, _, last = name.rpartition(".")
            setattr(plain.get_submodule(around), last, module.base_layer)
    inner: Any = wrapped(plain)
    del inner.peft_config
    return plain
