"""Make a whole 4-bit model, as a user's folder: `config.json`, `model.onnx` and its weights.

    python -m tests.benchmarks.whole_model minicpm3-4b|v2-lite-dense|v2-lite-two FOLDER [--layers N]

The model's code is that of transformers, exported by torch.onnx. Its weights are random: at their
size only their bytes matter. No weight exists before it is written, so that a model of 4 billion
parameters takes little memory: parameters are one number seen as a matrix during the export, and
each is made, already quantized, when the file is written.

Every linear layer is a MatMulNBits (4 bits, blocks of 32, symmetric, accuracy level 4), the
embeddings are a GatherBlockQuantized: what ONNX Runtime's own quantizers write.
"""

from __future__ import annotations

import argparse
import math
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import transformers
from onnx_ir.passes.common import RemoveUnusedNodesPass

from tests.benchmarks.export_deepseek import program

BITS, BLOCK, ACCURACY = 4, 32, 4
#: Numbers from which a parameter is made when it is written: norms and small tables are real.
LARGE = 1 << 10
#: What a weight's scale is on average: activations neither vanish nor explode in many layers.
WEIGHT_STD = 0.02
OPSET = 23

#: What makes a model small that has the same buffers.
SMALL = {"num_hidden_layers": 1, "vocab_size": 8, "intermediate_size": 8}
SHARED = {
    "max_position_embeddings": 65536,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
}
MINICPM3_4B: dict[str, Any] = {
    "num_hidden_layers": 62,
    "hidden_size": 2560,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "qk_nope_head_dim": 64,
    "qk_rope_head_dim": 32,
    "v_head_dim": 64,
    "kv_lora_rank": 256,
    "q_lora_rank": 768,
    "intermediate_size": 6400,
    "vocab_size": 73448,
    "scale_emb": 12,
    "dim_model_base": 256,
    "scale_depth": 1.4,
}
#: DeepSeek-V2-Lite with its first, dense MLP in every layer.
V2_LITE_DENSE: dict[str, Any] = {
    "num_hidden_layers": 27,
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
    "kv_lora_rank": 512,
    "q_lora_rank": None,
    "intermediate_size": 10944,
    "vocab_size": 102400,
    "first_k_dense_replace": 27,
    "rope_interleave": True,
}
#: Two layers of its attention; in a model of few layers ik_llama.cpp wants a latent of the query.
V2_LITE_TWO: dict[str, Any] = {
    **V2_LITE_DENSE,
    "num_hidden_layers": 2,
    "q_lora_rank": 1536,
    "intermediate_size": 1024,
    "vocab_size": 4096,
    "first_k_dense_replace": 2,
}
#: For `--quick`.
MINICPM3_TINY: dict[str, Any] = {
    **MINICPM3_4B,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 16,
    "intermediate_size": 96,
    "vocab_size": 96,
}
#: With widths that ik_llama.cpp has.
V2_LITE_TINY: dict[str, Any] = {
    **V2_LITE_DENSE,
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "q_lora_rank": 32,
    "intermediate_size": 96,
    "vocab_size": 96,
    "first_k_dense_replace": 2,
}
MODELS = {
    "minicpm3-tiny": ("MiniCPM3", MINICPM3_TINY),
    "minicpm3-4b": ("MiniCPM3", MINICPM3_4B),
    "v2-lite-tiny": ("DeepseekV3", V2_LITE_TINY),
    "v2-lite-dense": ("DeepseekV3", V2_LITE_DENSE),
    "v2-lite-two": ("DeepseekV3", V2_LITE_TWO),
}


def main() -> None:
    """Make one model."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, help="instead of all")
    options = parser.parse_args()
    make(options.model, options.folder, options.layers)


def make(name: str, folder: Path, layers: int | None = None) -> Path:
    """Write the folder of a model; return the path of its ONNX file."""
    family, dims = MODELS[name]
    dims = dims if layers is None else {**dims, "num_hidden_layers": layers}
    config = getattr(transformers, f"{family}Config")(
        **SHARED, **dims, attn_implementation="sdpa", architectures=[f"{family}ForCausalLM"]
    )
    model = weightless(getattr(transformers, f"{family}ForCausalLM"), config)
    sizes = {**dims, "layers": dims["num_hidden_layers"]}
    # Optimizing right away would make every weight, to transpose it.
    exported = program(model, sizes, OPSET, optimize=False, verbose=False)
    quantize(exported.model)
    exported.optimize()
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(folder)
    ir.save(exported.model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


def weightless(model_class: Any, config: Any) -> torch.nn.Module:
    """A model whose matrices are one number each, seen at their shape."""
    with torch.device("meta"):
        model = model_class(config)
    small = model_class(type(config)(**{**config.to_dict(), **SMALL}))
    for name, buffer in small.named_buffers():
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, buffer)
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            number = torch.ones(()) if "norm" in type(module).__name__.lower() else torch.zeros(())
            seen = torch.nn.Parameter(number.expand(parameter.shape), requires_grad=False)
            setattr(module, name, seen)
    return model.eval()


def quantize(model: ir.Model) -> None:
    """Put 4-bit operators in the place of products with large weights, and of the embeddings."""
    model.opset_imports["com.microsoft"] = 1
    for node in list(model.graph):
        if node.op_type == "MatMul" and (weight := _transposed(node.inputs[1])) is not None:
            _replace(node, _linear(node.inputs[0], weight))
        elif node.op_type == "Gather" and _large(node.inputs[0]):
            _replace(node, _embeddings(node.inputs[0], node.inputs[1]))
    RemoveUnusedNodesPass()(model)


def _large(value: ir.Value | None) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size >= LARGE


def _transposed(value: ir.Value | None) -> ir.Value | None:
    """The weight [out, in] whose transpose a value is."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "Transpose" or not _large(node.inputs[0]):
        return None
    return node.inputs[0]


def _linear(operand: ir.Value | None, weight: ir.Value) -> ir.Node:
    """A product with a weight [out, in] of 4 bits."""
    out, width = weight.shape.numpy()
    numbers = _random(weight, "stored", (out, width // BLOCK, BLOCK * BITS // 8))
    scales = _scales(weight, (out, width // BLOCK))
    attributes = {"K": width, "N": out, "bits": BITS, "block_size": BLOCK}
    return ir.node(
        "MatMulNBits",
        [operand, numbers, scales],
        attributes | {"accuracy_level": ACCURACY},
        domain="com.microsoft",
    )


def _embeddings(weight: ir.Value | None, indices: ir.Value | None) -> ir.Node:
    """Rows of a table [vocabulary, hidden] of 4 bits."""
    rows, width = weight.shape.numpy()
    numbers = _random(weight, "stored", (rows, width * BITS // 8))
    scales = _scales(weight, (rows, width // BLOCK))
    attributes = {"bits": BITS, "block_size": BLOCK, "gather_axis": 0, "quantize_axis": 1}
    return ir.node(
        "GatherBlockQuantized", [numbers, indices, scales], attributes, domain="com.microsoft"
    )


def _random(weight: ir.Value, part: str, shape: tuple[int, ...]) -> ir.Value:
    """Bytes that depend on the weight's name, made when they are written."""
    name = f"{weight.name}.{part}"

    def make() -> ir.Tensor:
        noise = np.random.default_rng(zlib.crc32(name.encode()))
        stored = np.frombuffer(noise.bytes(math.prod(shape)), np.uint8).reshape(shape)
        return ir.Tensor(stored, name=name)

    return _initializer(weight, ir.LazyTensor(make, ir.DataType.UINT8, ir.Shape(shape), name=name))


def _scales(weight: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """One scale a block: uniform numbers from -8 to 7 become weights of the usual size.

    They are float16 numbers, so that a GGUF can hold the same weights.
    """
    name = f"{weight.name}.scales"
    uniform_std = math.sqrt((2 ** (2 * BITS) - 1) / 12)

    def make() -> ir.Tensor:
        noise = np.random.default_rng(zlib.crc32(name.encode()))
        scales = noise.uniform(0.5, 1.5, shape) * (WEIGHT_STD / uniform_std)
        return ir.Tensor(scales.astype(np.float16).astype(np.float32), name=name)

    return _initializer(weight, ir.LazyTensor(make, ir.DataType.FLOAT, ir.Shape(shape), name=name))


def _initializer(beside: ir.Value, tensor: ir.LazyTensor) -> ir.Value:
    value = ir.Value(
        name=tensor.name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    beside.graph.initializers.add(value)
    return value


def _replace(node: ir.Node, replacement: ir.Node) -> None:
    """Put another node of one output in a node's place."""
    old, new = node.outputs[0], replacement.outputs[0]
    new.name, new.shape, new.type = old.name, old.shape, old.type
    replacement.name = node.name
    replacement.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(node.graph, node, [node], [replacement], [old], [new])


if __name__ == "__main__":
    main()
