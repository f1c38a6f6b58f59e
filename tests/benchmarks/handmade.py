"""The measured model written by hand: what a careful exporter would emit.

    python -m tests.benchmarks.handmade DIMS-AS-JSON expanded|absorbed OUT.onnx

`expanded` re-expands the latent cache each step, but cleanly: `K = Concat(c W_UK, k_pe)`, no
ScatterND; standard operators only. It is the baseline that tells the cost of the exporter's graph
from the cost of re-expansion. `absorbed` never expands; it shows what the operators of ONNX
Runtime can reach and checks the harness. Weights are those of `export_deepseek`, by name.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from tests.benchmarks.dims import Dims
from tests.benchmarks.export_deepseek import NORM_STD, WEIGHT_STD

Array = np.ndarray[Any, Any]
OPSET, IR_VERSION = 21, 10
EPSILON, ROPE_BASE = 1e-6, 10000.0
LOWEST = np.float32(np.finfo(np.float32).min)


def weight(name: str, *shape: int) -> Array:
    """The parameter that `export_deepseek.randomize` gives to the module of this name."""
    noise = torch.Generator().manual_seed(zlib.crc32(f"{name}.weight".encode()))
    mean, std = (1.0, NORM_STD) if "norm" in name else (0.0, WEIGHT_STD)
    return torch.empty(shape).normal_(mean, std, generator=noise).numpy()


class Tape:
    """Nodes and initializers in the order they were written."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.names = 0

    def fresh(self, stem: str) -> str:
        """A name not used before."""
        self.names += 1
        return f"{stem}_{self.names}"

    def op(self, kind: str, *inputs: str, out: str | None = None, **attributes: Any) -> str:
        """Append a node with one output."""
        out = out or self.fresh(kind)
        self.nodes.append(helper.make_node(kind, list(inputs), [out], **attributes))
        return out

    def split(self, value: str, sizes: tuple[int, ...], axis: int = -1) -> list[str]:
        """Append a `Split`."""
        outs = [self.fresh("Split") for _ in sizes]
        self.nodes.append(helper.make_node("Split", [value, self.ints(*sizes)], outs, axis=axis))
        return outs

    def array(self, value: Array, stem: str = "const") -> str:
        """Add an initializer."""
        name = self.fresh(stem)
        self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def ints(self, *values: int) -> str:
        """A 1-D int64 constant."""
        return self.array(np.array(values, np.int64))

    def number(self, value: float) -> str:
        """A float constant."""
        return self.array(np.array(value, np.float32))

    def weight(self, name: str, out: int, width: int) -> Array:
        """The parameter of a torch Linear."""
        return weight(name, out, width)

    def linear(self, value: str, name: str, width: int, out: int) -> str:
        """`value @ W.T` for the parameter of a torch Linear."""
        return self.op("MatMul", value, self.array(self.weight(name, out, width).T, name))

    def rms_norm(self, value: str, name: str, width: int) -> str:
        """RMSNorm over the last axis."""
        square = self.op("Mul", value, value)
        mean = self.op("ReduceMean", square, self.ints(-1), keepdims=1)
        root = self.op("Sqrt", self.op("Add", mean, self.number(EPSILON)))
        return self.op("Mul", self.op("Div", value, root), self.array(weight(name, width), name))

    def transposed(self, value: str) -> str:
        """Swap the last two axes of a rank-4 value."""
        return self.op("Transpose", value, perm=[0, 1, 3, 2])


def angles(tape: Tape, dims: Dims) -> tuple[str, str]:
    """Cosine and sine [B, 1, S, R/2] of the rotary angles."""
    half = torch.arange(0, dims.qk_rope_head_dim, 2).float() / dims.qk_rope_head_dim
    positions = tape.op("Cast", "position_ids", to=TensorProto.FLOAT)
    positions = tape.op("Unsqueeze", positions, tape.ints(1, 3))
    angle = tape.op("Mul", positions, tape.array((1.0 / ROPE_BASE**half).numpy()))
    return tape.op("Cos", angle), tape.op("Sin", angle)


def rotate(tape: Tape, value: str, cos: str, sin: str) -> str:
    """Interleaved rotary embedding that leaves real parts first, then imaginary ones."""
    ends, axis, step = tape.ints(2**62), tape.ints(3), tape.ints(2)
    even = tape.op("Slice", value, tape.ints(0), ends, axis, step)
    odd = tape.op("Slice", value, tape.ints(1), ends, axis, step)
    real = tape.op("Sub", tape.op("Mul", even, cos), tape.op("Mul", odd, sin))
    imaginary = tape.op("Add", tape.op("Mul", odd, cos), tape.op("Mul", even, sin))
    return tape.op("Concat", real, imaginary, axis=-1)


def mask(tape: Tape) -> str:
    """Additive mask [B, 1, S, T]: causal, and nothing that `attention_mask` hides."""
    total = tape.op("Squeeze", tape.op("Shape", "attention_mask", start=1, end=2))
    new = tape.op("Squeeze", tape.op("Shape", "input_ids", start=1, end=2))
    zero, one = tape.array(np.array(0, np.int64)), tape.array(np.array(1, np.int64))
    keys = tape.op("Range", zero, total, one)
    queries = tape.op("Range", tape.op("Sub", total, new), total, one)
    causal = tape.op("LessOrEqual", keys, tape.op("Unsqueeze", queries, tape.ints(1)))
    seen = tape.op("Cast", "attention_mask", to=TensorProto.BOOL)
    seen = tape.op("And", tape.op("Unsqueeze", seen, tape.ints(1, 2)), causal)
    return tape.op("Where", seen, tape.number(0.0), tape.number(float(LOWEST)))


def expansions(tape: Tape, prefix: str, dims: Dims) -> tuple[str, str]:
    """`W_UK` [H, N, C] and `W_UV` [H, C, V], cut out of kv_b_proj."""
    heads, nope, value = dims.num_heads, dims.qk_nope_head_dim, dims.v_head_dim
    both = tape.weight(f"{prefix}.kv_b_proj", heads * (nope + value), dims.kv_lora_rank)
    both = both.reshape(heads, nope + value, dims.kv_lora_rank)
    w_uv = both[:, nope:].transpose(0, 2, 1)
    return tape.array(both[:, :nope], f"{prefix}.w_uk"), tape.array(w_uv, f"{prefix}.w_uv")


def expanded(
    tape: Tape, prefix: str, dims: Dims, parts: tuple[str, str, str, str], bias: str
) -> str:
    """softmax(q [W_UK cᵀ ; k_peᵀ]) (c W_UV): keys and values are made from the whole cache."""
    q_nope, q_pe, c_kv, k_pe = parts
    w_uk, w_uv = expansions(tape, prefix, dims)
    query = tape.op("Concat", q_nope, q_pe, axis=-1)
    shared = tape.op("Expand", tape.transposed(k_pe), tape.ints(1, dims.num_heads, 1, 1))
    keys = tape.op("Concat", tape.op("MatMul", w_uk, tape.transposed(c_kv)), shared, axis=-2)
    scores = tape.op("Mul", tape.op("MatMul", query, keys), tape.number(dims.scale))
    weights = tape.op("Softmax", tape.op("Add", scores, bias), axis=-1)
    return tape.op("MatMul", weights, tape.op("MatMul", c_kv, w_uv))


def absorbed(
    tape: Tape, prefix: str, dims: Dims, parts: tuple[str, str, str, str], bias: str
) -> str:
    """(softmax((q W_UK) cᵀ + q_pe k_peᵀ) c) W_UV: attention over the latent rows themselves."""
    q_nope, q_pe, c_kv, k_pe = parts
    w_uk, w_uv = expansions(tape, prefix, dims)
    latent = tape.op("MatMul", tape.op("MatMul", q_nope, w_uk), tape.transposed(c_kv))
    rope = tape.op("MatMul", q_pe, tape.transposed(k_pe))
    scores = tape.op("Mul", tape.op("Add", latent, rope), tape.number(dims.scale))
    weights = tape.op("Softmax", tape.op("Add", scores, bias), axis=-1)
    return tape.op("MatMul", tape.op("MatMul", weights, c_kv), w_uv)


#: Attention from queries, the whole cache and the mask to heads [B, H, S, V].
FORMS = {"expanded": expanded, "absorbed": absorbed}


def query(tape: Tape, hidden: str, prefix: str, dims: Dims) -> list[str]:
    """Queries [B, H, S, N] and [B, H, S, R], before rotation."""
    width = dims.num_heads * dims.qk_head_dim
    if dims.q_lora_rank is None:
        value = tape.linear(hidden, f"{prefix}.q_proj", dims.hidden_size, width)
    else:
        value = tape.linear(hidden, f"{prefix}.q_a_proj", dims.hidden_size, dims.q_lora_rank)
        value = tape.rms_norm(value, f"{prefix}.q_a_layernorm", dims.q_lora_rank)
        value = tape.linear(value, f"{prefix}.q_b_proj", dims.q_lora_rank, width)
    value = tape.op("Reshape", value, tape.ints(0, 0, dims.num_heads, dims.qk_head_dim))
    value = tape.op("Transpose", value, perm=[0, 2, 1, 3])
    return tape.split(value, (dims.qk_nope_head_dim, dims.qk_rope_head_dim))


def latent_row(tape: Tape, hidden: str, prefix: str, dims: Dims) -> tuple[str, str]:
    """New latent [B, 1, S, C] after its norm, and the rotary key [B, 1, S, R] before rotation."""
    rank, rope = dims.kv_lora_rank, dims.qk_rope_head_dim
    both = tape.linear(hidden, f"{prefix}.kv_a_proj_with_mqa", dims.hidden_size, rank + rope)
    c_kv, k_pe = tape.split(both, (rank, rope))
    c_kv = tape.rms_norm(c_kv, f"{prefix}.kv_a_layernorm", rank)
    axis = tape.ints(1)
    return tape.op("Unsqueeze", c_kv, axis), tape.op("Unsqueeze", k_pe, axis)


def attention(
    tape: Tape, hidden: str, index: int, dims: Dims, form: str, shared: tuple[str, str, str]
) -> str:
    """One attention with its cache, from the normed hidden state to o_proj."""
    prefix, (cos, sin, bias) = f"model.layers.{index}.self_attn", shared
    q_nope, q_pe = query(tape, hidden, prefix, dims)
    c_kv, k_pe = latent_row(tape, hidden, prefix, dims)
    q_pe, k_pe = rotate(tape, q_pe, cos, sin), rotate(tape, k_pe, cos, sin)
    c_kv = tape.op("Concat", f"past.{index}.keys", c_kv, axis=-2, out=f"present.{index}.keys")
    k_pe = tape.op("Concat", f"past.{index}.values", k_pe, axis=-2, out=f"present.{index}.values")
    value = FORMS[form](tape, prefix, dims, (q_nope, q_pe, c_kv, k_pe), bias)
    value = tape.op("Transpose", value, perm=[0, 2, 1, 3])
    width = dims.num_heads * dims.v_head_dim
    value = tape.op("Reshape", value, tape.ints(0, 0, width))
    return tape.linear(value, f"{prefix}.o_proj", width, dims.hidden_size)


def mlp(tape: Tape, hidden: str, index: int, dims: Dims) -> str:
    """The gated MLP."""
    prefix = f"model.layers.{index}.mlp"
    gate = tape.linear(hidden, f"{prefix}.gate_proj", dims.hidden_size, dims.mlp)
    up = tape.linear(hidden, f"{prefix}.up_proj", dims.hidden_size, dims.mlp)
    gate = tape.op("Mul", gate, tape.op("Sigmoid", gate))
    return tape.linear(tape.op("Mul", gate, up), f"{prefix}.down_proj", dims.mlp, dims.hidden_size)


def decoder(tape: Tape, dims: Dims, form: str) -> None:
    """The whole model, into `tape`."""
    size = dims.hidden_size
    shared = (*angles(tape, dims), mask(tape))
    table = tape.array(weight("model.embed_tokens", dims.vocab, size), "embed_tokens")
    hidden = tape.op("Gather", table, "input_ids")
    for index in range(dims.layers):
        layer = f"model.layers.{index}"
        normed = tape.rms_norm(hidden, f"{layer}.input_layernorm", size)
        hidden = tape.op("Add", hidden, attention(tape, normed, index, dims, form, shared))
        normed = tape.rms_norm(hidden, f"{layer}.post_attention_layernorm", size)
        hidden = tape.op("Add", hidden, mlp(tape, normed, index, dims))
    last = tape.op("Slice", hidden, tape.ints(-1), tape.ints(2**62), tape.ints(1))
    last = tape.rms_norm(last, "model.norm", size)
    head = tape.array(weight("lm_head", dims.vocab, size).T, "lm_head")
    tape.op("MatMul", last, head, out="logits")


def interface(dims: Dims) -> tuple[list[onnx.ValueInfoProto], list[onnx.ValueInfoProto]]:
    """Inputs and outputs, named as in the export."""
    tokens = {"input_ids": "query", "attention_mask": "total", "position_ids": "query"}
    info = helper.make_tensor_value_info
    inputs = [info(name, TensorProto.INT64, ["batch", axis]) for name, axis in tokens.items()]
    outputs = [info("logits", TensorProto.FLOAT, ["batch", 1, dims.vocab])]
    kinds = {"keys": dims.kv_lora_rank, "values": dims.qk_rope_head_dim}
    for index in range(dims.layers):
        for kind, width in kinds.items():
            past, present = f"past.{index}.{kind}", f"present.{index}.{kind}"
            inputs.append(info(past, TensorProto.FLOAT, ["batch", 1, "past", width]))
            outputs.append(info(present, TensorProto.FLOAT, ["batch", 1, "total", width]))
    return inputs, outputs


def build(dims: Dims, form: str, path: Path, tape: Tape | None = None) -> None:
    """Write the model beside its external data."""
    tape = tape or Tape()
    decoder(tape, dims, form)
    graph = helper.make_graph(tape.nodes, form, *interface(dims), tape.initializers)
    domains = {node.domain for node in tape.nodes} - {""}
    imports = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(d, 1) for d in domains)]
    model = helper.make_model(graph, opset_imports=imports, ir_version=IR_VERSION)
    data = path.name + ".data"
    (path.parent / data).unlink(missing_ok=True)
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=1024)


if __name__ == "__main__":
    build(Dims.from_json(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
