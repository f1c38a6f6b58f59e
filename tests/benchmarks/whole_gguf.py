"""Write the folder of `whole_model` as a GGUF, its 4-bit weights as Q4_0, number for number.

    python -m tests.benchmarks.whole_gguf FOLDER llama.cpp|ik_llama.cpp TARGET.gguf

llama.cpp, or ik_llama.cpp, then runs the same model. All store blocks of 32 numbers of 4 bits that
are 8 too large and one scale; they only order the halves of bytes otherwise.

For DeepSeek llama.cpp wants W_UK transposed, with blocks along the other axis: it is rounded once
more, to Q8_0, as ik_llama.cpp does when it loads the one matrix that it is given.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from mla_opt.benchmarking.peers import gguf_convert
from tests.benchmarks.whole_model import BLOCK

Array = npt.NDArray[Any]
Tensor = tuple[str, Array, GGMLQuantizationType | None]

ARCHITECTURES = {
    "minicpm3": gguf.MODEL_ARCH.MINICPM3,
    "deepseek_v3": gguf.MODEL_ARCH.DEEPSEEK2,
}
STORED, SCALES = ".stored", ".scales"


def main(folder: Path, runtime: str, target: Path) -> None:
    """Write the file."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(target, gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True)
    whole = architecture == gguf.MODEL_ARCH.MINICPM3 or runtime == "ik_llama.cpp"
    if architecture == gguf.MODEL_ARCH.MINICPM3:
        metadata(writer, config)
    else:
        gguf_convert.check(config)
        gguf_convert.metadata(writer, config, whole)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    for tensor in chain(matrices(folder), norms(config)):
        for name, array, kind in [tensor] if whole else apart(*tensor, config):
            known = names.get_name(name.removeprefix("model."), try_suffixes=(".weight",))
            known = known or names.get_name(name, try_suffixes=(".weight",))
            writer.add_tensor(known, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def matrices(folder: Path) -> Iterator[Tensor]:
    """Those of the model, in blocks of Q4_0."""
    weights = ir.load(folder / "model.onnx").graph.initializers
    for name, value in weights.items():
        if name.endswith(STORED):
            name = name.removesuffix(STORED)
            scales = weights[name + SCALES].const_value.numpy()
            yield name, q4_0(value.const_value.numpy(), scales), GGMLQuantizationType.Q4_0


def norms(config: dict[str, Any]) -> Iterator[Tensor]:
    """Their weights, which are ones: the model keeps one tensor for all that are of a width."""
    widths = {
        "input_layernorm": config["hidden_size"],
        "post_attention_layernorm": config["hidden_size"],
        "self_attn.q_a_layernorm": config.get("q_lora_rank"),
        "self_attn.kv_a_layernorm": config["kv_lora_rank"],
    }
    for layer in range(config["num_hidden_layers"]):
        for name, width in widths.items():
            if width:
                yield f"model.layers.{layer}.{name}.weight", np.ones(width, np.float32), None
    yield "model.norm.weight", np.ones(config["hidden_size"], np.float32), None


def apart(
    name: str, array: Array, kind: GGMLQuantizationType | None, config: dict[str, Any]
) -> Iterator[Tensor]:
    """W_UK transposed, ``[H, C, N]``, and W_UV, ``[H, V, C]``; any other tensor as it is."""
    if not name.endswith("kv_b_proj.weight"):
        yield name, array, kind
        return
    heads, nope = config["num_attention_heads"], config["qk_nope_head_dim"]
    by_head = array.reshape(heads, nope + config["v_head_dim"], -1)
    w_uk = dequantize(by_head[:, :nope], GGMLQuantizationType.Q4_0).transpose(0, 2, 1)
    narrow = GGMLQuantizationType.Q8_0
    yield name.replace("kv_b", "k_b"), quantize(np.ascontiguousarray(w_uk), narrow), narrow
    yield name.replace("kv_b", "v_b"), np.ascontiguousarray(by_head[:, nope:]), kind


def q4_0(stored: Array, scales: Array) -> Array:
    """Bytes [out, blocks · 18] of Q4_0: a float16 scale, then numbers j and j + 16 in byte j."""
    rows = len(stored)
    pairs = stored.reshape(rows, -1, BLOCK // 2)
    numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, -1, 2, BLOCK // 2)
    halves = numbers[:, :, 0] | (numbers[:, :, 1] << 4)
    scale = scales.reshape(rows, -1, 1).astype(np.float16).view(np.uint8)
    return np.concatenate([scale, halves], axis=-1).reshape(rows, -1)


def metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The dimensions of MiniCPM3; keys and values are cached expanded."""
    rope = config["qk_rope_head_dim"]
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_attention_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_q_lora_rank(config["q_lora_rank"])
    writer.add_kv_lora_rank(config["kv_lora_rank"])
    writer.add_key_length(config["qk_nope_head_dim"] + rope)
    writer.add_value_length(config["v_head_dim"])
    writer.add_rope_dimension_count(rope)
    writer.add_rope_freq_base(float(config["rope_parameters"]["rope_theta"]))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q4_0)
    # Token ids come ready-made, so no tokenizer is needed.
    writer.add_tokenizer_model("none")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
