"""Write a transformers folder of DeepSeek-V2 or V3 shape as a GGUF that llama.cpp absorbs.

    python -m mla_opt.benchmarking.peers.gguf_convert DIR f16|f32 TARGET.gguf

`W_UK` goes in transposed as ``attn_k_b`` and `W_UV` as ``attn_v_b``, with ``key_length_mla``: the
keys by which llama.cpp takes the absorbed form. Only dense layers and plain rotary embedding are
written here; for anything else put a file made by llama.cpp's own converter into DIR.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import torch
from safetensors import safe_open

Array = npt.NDArray[Any]
Config = dict[str, Any]

ARCHITECTURE = gguf.MODEL_ARCH.DEEPSEEK2
OWN_FILE = "put a GGUF of this model, made by llama.cpp's convert_hf_to_gguf.py, into the folder"


def check(config: Config) -> None:
    """Raise `ValueError` where the model has something that is not written here."""
    needed = ("kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim")
    missing = [name for name in needed if name not in config]
    experts = config.get("n_routed_experts") is not None
    dense = not experts or config.get("first_k_dense_replace", 0) >= config["num_hidden_layers"]
    odd = {
        f"no {', '.join(missing)}": bool(missing),
        "layers of experts": not dense,
        "a scaled rotary embedding": _rope(config).get("rope_type", "default") != "default",
        "rotary dims in halves": config.get("rope_interleave") is False,
        "quantized weights": "quantization_config" in config,
        "biases in its attention": bool(config.get("attention_bias")),
    }
    found = [what for what, there in odd.items() if there]
    if found:
        raise ValueError(f"the model has {' and '.join(found)}; {OWN_FILE}")


def metadata(writer: gguf.GGUFWriter, config: Config) -> None:
    """Write the dimensions. llama.cpp sees one key-value head as wide as a latent row."""
    rope, latent = config["qk_rope_head_dim"], config["kv_lora_rank"]
    layers = config["num_hidden_layers"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(layers)
    writer.add_leading_dense_block_count(layers)
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_expert_feed_forward_length(config["intermediate_size"])
    writer.add_expert_shared_count(0)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    # Asked for even where there is none, unless the depth is that of a model without.
    writer.add_q_lora_rank(config.get("q_lora_rank") or 0)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + rope)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config["qk_nope_head_dim"] + rope)
    writer.add_value_length_mla(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10000.0)))
    # Token ids come ready-made, so no tokenizer is needed.
    writer.add_tokenizer_model("none")


def tensors(folder: Path, config: Config) -> Iterator[tuple[str, Array]]:
    """Yield every tensor by the name that llama.cpp has for it, as float32."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    for name, value in _stored(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        for part, array in _split(name, value, config):
            known = names.get_name(part, try_suffixes=(".weight",))
            if known is None:
                raise ValueError(f"no place for tensor {part}; {OWN_FILE}")
            yield known, array


def _split(name: str, value: Array, config: Config) -> Iterator[tuple[str, Array]]:
    """W_UK and W_UV apart, per head: ``[H, C, N]`` and ``[H, V, C]``."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, value
        return
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    both = value.reshape(heads, nope + config["v_head_dim"], -1)
    w_uk, w_uv = both[:, :nope].transpose(0, 2, 1), both[:, nope:]
    yield name.replace("kv_b_proj", "k_b_proj"), np.ascontiguousarray(w_uk)
    yield name.replace("kv_b_proj", "v_b_proj"), np.ascontiguousarray(w_uv)


def _stored(folder: Path) -> Iterator[tuple[str, Array]]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            names: list[str] = file.keys()
            for name in names:
                yield name, file.get_tensor(name).to(torch.float32).numpy()


def _rope(config: Config) -> Config:
    """The rotary parameters, of new and of older configurations."""
    older = {"rope_theta": config.get("rope_theta", 10000.0), **(config.get("rope_scaling") or {})}
    return dict(config.get("rope_parameters") or older)


def convert(folder: Path, precision: str, target: Path) -> None:
    """Write the file; matrices in `precision`, vectors always in f32."""
    config = json.loads((folder / "config.json").read_text())
    check(config)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    metadata(writer, config)
    for name, value in tensors(folder, config):
        narrow = precision == "f16" and value.ndim > 1
        writer.add_tensor(name, value.astype(np.float16 if narrow else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
