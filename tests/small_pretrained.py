"""Tiny causal models of Hugging Face with random weights, in the files that real ones come in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import pre_tokenizers

from gradroute.data.text.tokenizing import train_words
from gradroute.data.text.toy_stories import generate

VOCABULARY, UNITS = 800, 24
ENDS = {"gpt2": "<|endoftext|>", "gpt_neox": "</s>", "llama": "<eos>", "mamba": "<|endoftext|>", "mistral": "<s>"}


def save_model(folder: Path, kind: str, shard: str = "1GB", **settings: Any) -> Path:
    """A model of two layers, in a folder as the hub has them, its weights in files of at most the size `shard`."""
    import transformers

    torch.manual_seed(1)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2}
    if kind != "mamba":
        sizes |= {"num_attention_heads": 2, "max_position_embeddings": 64}
        sizes |= {"n_inner": UNITS} if kind == "gpt2" else {"intermediate_size": UNITS}
    config = transformers.AutoConfig.for_model(kind, bos_token_id=0, eos_token_id=0, **sizes, **settings)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder, max_shard_size=shard)
    text = train_words(generate(300, 0).texts).to_json()
    (folder / "tokenizer.json").write_text(text.replace("<|endoftext|>", ENDS[kind]))
    if kind == "gpt_neox":
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"eos_token": {"content": ENDS[kind]}, "model_max_length": 10**30})
        )
    return folder


def save_gguf(path: Path) -> dict[str, torch.Tensor]:
    """A Llama of two layers in a GGUF file, with a tokenizer of bytes; return its tensors by their names there."""
    import gguf

    width, tokens = 16, [*sorted(pre_tokenizers.ByteLevel.alphabet()), "Ġt", "Ġth", "Ġthe", "<|endoftext|>"]
    end, draw = len(tokens) - 1, np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(UNITS)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["Ġ t", "Ġt h", "Ġth e"])
    writer.add_token_types([1] * end + [3])
    writer.add_bos_token_id(end)
    writer.add_eos_token_id(end)
    shapes = {"token_embd": (len(tokens), width), "output": (len(tokens), width), "output_norm": (width,)}
    for layer in (f"blk.{i}" for i in range(2)):
        shapes |= {f"{layer}.attn_{name}": (width, width) for name in ("q", "output")}
        shapes |= {f"{layer}.attn_{name}": (width // 2, width) for name in ("k", "v")}
        shapes |= {f"{layer}.ffn_{name}": (UNITS, width) for name in ("gate", "up")}
        shapes |= {f"{layer}.ffn_down": (width, UNITS)}
        shapes |= {f"{layer}.{name}_norm": (width,) for name in ("attn", "ffn")}
    made = {name: (0.02 * draw.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    for name, array in made.items():
        writer.add_tensor(f"{name}.weight", array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {name: torch.from_numpy(array) for name, array in made.items()}
