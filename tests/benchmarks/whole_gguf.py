"""Write the folder of `whole_model` as a GGUF, its 4-bit weights as Q4_0, number for number.

    python -m tests.benchmarks.whole_gguf FOLDER

llama.cpp then runs the same model. Both store blocks of 32 numbers of 4 bits that are 8 too large
and one scale; they only order the halves of bytes otherwise.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from tests.benchmarks.whole_model import BLOCK

Array = npt.NDArray[Any]

ARCHITECTURES = {"minicpm3": gguf.MODEL_ARCH.MINICPM3}
STORED, SCALES = ".stored", ".scales"


def main(folder: Path) -> None:
    """Write `model.gguf` into the folder."""
    config = json.loads((folder / "config.json").read_text())
    architecture = ARCHITECTURES[config["model_type"]]
    names = gguf.get_tensor_name_map(architecture, config["num_hidden_layers"])
    writer = gguf.GGUFWriter(
        folder / "model.gguf", gguf.MODEL_ARCH_NAMES[architecture], use_temp_file=True
    )
    metadata(writer, config)
    weights = ir.load(folder / "model.onnx").graph.initializers
    for name, value in weights.items():
        if name.endswith(STORED):
            whole = name.removesuffix(STORED)
            blocks = q4_0(value.const_value.numpy(), weights[whole + SCALES].const_value.numpy())
            known = names.get_name(whole.removeprefix("model."), try_suffixes=(".weight",))
            writer.add_tensor(known, blocks, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        elif name.endswith("norm.weight"):
            known = names.get_name(name.removeprefix("model."), try_suffixes=(".weight",))
            writer.add_tensor(known, value.const_value.numpy().astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def q4_0(stored: Array, scales: Array) -> Array:
    """Bytes [out, blocks · 18] of Q4_0: a float16 scale, then numbers j and j + 16 in byte j."""
    rows = len(stored)
    pairs = stored.reshape(rows, -1, BLOCK // 2)
    numbers = np.stack([pairs & 15, pairs >> 4], axis=-1).reshape(rows, -1, 2, BLOCK // 2)
    halves = numbers[:, :, 0] | (numbers[:, :, 1] << 4)
    scale = scales.reshape(rows, -1, 1).astype(np.float16).view(np.uint8)
    return np.concatenate([scale, halves], axis=-1).reshape(rows, -1)


def metadata(writer: gguf.GGUFWriter, config: dict[str, Any]) -> None:
    """The dimensions; keys and values are cached expanded."""
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
    main(Path(sys.argv[1]))
