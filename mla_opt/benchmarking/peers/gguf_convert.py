"""Write a transformers folder of DeepSeek-V2 or V3 shape as a GGUF that llama.cpp absorbs.

    python -m mla_opt.benchmarking.peers.gguf_convert DIR llama.cpp|ik_llama.cpp f16|f32|q4_0 TARGET

For llama.cpp `W_UK` goes in transposed as ``attn_k_b`` and `W_UV` as ``attn_v_b``, with
``key_length_mla``: the keys by which it takes the absorbed form. ik_llama.cpp reads both in one
``attn_kv_b``, as the model has them, and makes what it needs of it. Only dense layers and plain
rotary embedding are written here; for anything else put a file made by llama.cpp's own converter
into DIR.
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
from gguf.quants import quantize
from safetensors import safe_open

Array = npt.NDArray[Any]
Config = dict[str, Any]

ARCHITECTURE = gguf.MODEL_ARCH.DEEPSEEK2
#: Numbers that share a scale in Q4_0.
BLOCK = 32
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


def metadata(writer: gguf.GGUFWriter, config: Config, whole: bool) -> None:
    """Write the dimensions; `whole`: keys and values of all heads come from one matrix.

    llama.cpp sees one key-value head as wide as a latent row, ik_llama.cpp those of the model.
    """
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
    writer.add_head_count_kv(config["num_attention_heads"] if whole else 1)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    # Asked for even where there is none, unless the depth is that of a model without.
    writer.add_q_lora_rank(config.get("q_lora_rank") or 0)
    writer.add_kv_lora_rank(latent)
    widths = config["qk_nope_head_dim"] + rope, config["v_head_dim"]
    if whole:
        writer.add_key_length(widths[0])
        writer.add_value_length(widths[1])
        writer.add_expert_weights_scale(1.0)  # asked for even where there are no experts
    else:
        writer.add_key_length(latent + rope)
        writer.add_value_length(latent)
        writer.add_key_length_mla(widths[0])
        writer.add_value_length_mla(widths[1])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(float(_rope(config).get("rope_theta", 10000.0)))
    # Token ids come ready-made, so no tokenizer is needed.
    writer.add_tokenizer_model("none")


def tensors(folder: Path, config: Config, whole: bool) -> Iterator[tuple[str, Array]]:
    """Yield every tensor by the name that llama.cpp has for it, as float32."""
    names = gguf.get_tensor_name_map(ARCHITECTURE, config["num_hidden_layers"])
    for name, value in _stored(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        for part, array in [(name, value)] if whole else _split(name, value, config):
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


def stored(value: Array, precision: str) -> tuple[Array, gguf.GGMLQuantizationType | None]:
    """What a file keeps of a tensor, and as what: matrices in `precision`, vectors in f32."""
    if value.ndim < 2 or precision == "f32":
        return value, None
    if precision == "q4_0" and value.shape[-1] % BLOCK == 0:
        kind = gguf.GGMLQuantizationType.Q4_0
        return quantize(np.ascontiguousarray(value), kind), kind
    return value.astype(np.float16), None


def convert(folder: Path, runtime: str, precision: str, target: Path) -> None:
    """Write the file."""
    whole = runtime == "ik_llama.cpp"
    config = json.loads((folder / "config.json").read_text())
    check(config)
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[ARCHITECTURE])
    metadata(writer, config, whole)
    for name, value in tensors(folder, config, whole):
        kept, kind = stored(value.astype(np.float32), precision)
        writer.add_tensor(name, kept, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    convert(Path(sys.argv[1]), sys.argv[2], sys.argv[3], Path(sys.argv[4]))
