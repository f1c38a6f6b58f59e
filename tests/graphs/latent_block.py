"""Small ONNX models of latent attention, written node by node, for tests that need no exporter.

`Block` names what varies between exports; `build` writes the model, `feeds` makes inputs for it.
`edits` change one place of the graph: the function is given the tape and the value that is there,
and returns the value to go on with. Look-alikes are one edit away from the real thing.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Edit = Callable[["Tape", Any], Any]
Dim = int | str

TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16}


@dataclass(frozen=True)
class Block:
    """Latent attention layers one after the other, small enough to run in a millisecond.

    Attributes:
        share: later layers read the rows and the cache of the first.
        cache: what the model caches; `packed` is `[c_kv | k_pe]` in one tensor.
        cache_names: of the two halves of layer `{0}`, after `past` and `present`.
        fill: what a boolean mask puts in the place of scores.
        core: softmax between two products, or the Attention operator.
        bias: kind of mask; `computed` is made from the shape of `mask_from`.
        order: where dim i of a query or key `[nope | rope]` is put; `None` leaves them.
        keys: how the two parts of a key are put together.
        row_rank: rank of the latent rows, and of their caches.
        scale_on: what is multiplied by the scale.
        guarded: casts, the maximum subtracted, NaN made zero around the softmax.
        edits: see the module.
    """

    heads: int = 3
    nope: int = 8
    rope: int = 4
    value: int = 6
    latent: int = 12
    hidden: int = 20
    q_lora: int | None = 14
    layers: int = 1
    share: bool = False
    cache: Literal["latent", "packed", "expanded", "none"] = "latent"
    cache_names: tuple[str, str] = (".{0}.keys", ".{0}.values")
    core: Literal["eager", "fused"] = "eager"
    bias: Literal["additive", "boolean", "blocked", "both", "computed", None] = "additive"
    fill: float = float("-inf")
    mask_from: Literal["keys", "cache", "scores"] = "keys"
    causal: bool = False
    sink: bool = False
    order: tuple[int, ...] | None = None
    keys: Literal["concat", "scatter"] = "concat"
    value_bias: bool = False
    storage: Literal["matmul", "gemm", "dequantized", "transposed"] = "matmul"
    row_rank: int = 4
    scale: float = 0.37
    scale_on: Literal["scores", "divided", "query", "key", "key_heads", "both"] = "scores"
    guarded: bool = False
    dtype: str = "float32"
    batch: Dim = "B"
    query_len: Dim = "S"
    past_len: Dim = "P"
    opset: int = 18
    edits: Mapping[str, Edit] = field(default_factory=dict)

    @property
    def width(self) -> int:
        return self.nope + self.rope

    @property
    def total_len(self) -> Dim:
        if self.cache == "none":
            return self.query_len
        if isinstance(self.past_len, int) and isinstance(self.query_len, int):
            return self.past_len + self.query_len
        return "T"

    def halves(self, layer: int, end: str) -> tuple[str, str]:
        first, second = (end + name.format(layer) for name in self.cache_names)
        return first, second


class Tape:
    """Nodes, stored tensors and interface of one graph, in order."""

    def __init__(self, block: Block) -> None:
        self.block = block
        self.kind = TYPES[block.dtype]
        self.nodes: list[onnx.NodeProto] = []
        self.stores: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []
        self.layer = 0

    def __call__(
        self, op_type: str, *inputs: str, name: str = "", outputs: int = 1, **attributes: Any
    ) -> Any:
        """Write one node; returns the name of its output, or the names of several."""
        base = name or f"{op_type.lower()}_{len(self.nodes)}"
        made = [base] if outputs == 1 else [f"{base}.{index}" for index in range(outputs)]
        self.nodes.append(
            helper.make_node(op_type, list(inputs), made, f"node_{len(self.nodes)}", **attributes)
        )
        return made[0] if outputs == 1 else made

    def at(self, point: str, value: Any) -> Any:
        """The value to go on with at a place that a test may have edited."""
        edit = self.block.edits.get(point)
        return value if edit is None else edit(self, value)

    def stored(self, array: np.ndarray[Any, Any], name: str) -> str:
        self.stores.setdefault(name, numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def weight(self, name: str, *shape: int) -> str:
        """A stored tensor of numbers that depend on its name only."""
        return self.stored(self.numbers(name, *shape), self.named(name))

    def numbers(self, name: str, *shape: int) -> np.ndarray[Any, Any]:
        rng = np.random.default_rng(zlib.crc32(self.named(name).encode()))
        return (rng.standard_normal(shape) / 2).astype(self.block.dtype)

    def named(self, name: str) -> str:
        return f"model.layers.{self.layer}.self_attn.{name}"

    def scalar(self, number: float) -> str:
        return self.stored(np.asarray(number, dtype=self.block.dtype), f"const_{number}")

    def ints(self, *numbers: int) -> str:
        name = "_".join(["ints", *map(str, numbers)])
        return self.stored(np.asarray(numbers, dtype=np.int64), name)

    def input(self, name: str, shape: tuple[Dim, ...], kind: int | None = None) -> str:
        if name not in [each.name for each in self.inputs]:
            info = helper.make_tensor_value_info(name, kind or self.kind, list(shape))
            self.inputs.append(info)
        return name

    def output(self, value: str, name: str, shape: tuple[Dim | None, ...]) -> None:
        """Return a value under a name; the node that makes it is renamed, nothing is added."""
        for node in self.nodes:
            for names in (node.input, node.output):
                for place, known in enumerate(names):
                    if known == value:
                        names[place] = name
        self.outputs.append(helper.make_tensor_value_info(name, self.kind, list(shape)))


def build(block: Block) -> onnx.ModelProto:
    """Write the model of a block."""
    tape = Tape(block)
    hidden = tape.input("inputs_embeds", (block.batch, block.query_len, block.hidden))
    shared = None
    for layer in range(block.layers):
        tape.layer = 0 if block.share else layer
        rows = shared or _cached(tape, _rows(tape, hidden))
        shared = rows if block.share else None
        tape.layer = layer
        hidden = _attention(tape, hidden, rows)
    if not block.layers:
        hidden = tape("Tanh", hidden)
    tape.output(hidden, "hidden", (block.batch, block.query_len, block.hidden))
    graph = helper.make_graph(
        tape.nodes, "graph", tape.inputs, tape.outputs, list(tape.stores.values())
    )
    opsets = [helper.make_opsetid("", block.opset)]
    if any(node.domain for node in tape.nodes):
        opsets.append(helper.make_opsetid("test", 1))
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def feeds(
    block: Block, batch: int = 2, query: int = 4, past: int = 3, *, seed: int = 0, blind: int = 0
) -> dict[str, np.ndarray[Any, Any]]:
    """Inputs of the model; the first `blind` queries of the first sequence see nothing."""
    if block.cache == "none":
        past = 0
    sizes = {"B": batch, "S": query, "P": past, "T": past + query}
    rng = np.random.default_rng(seed)
    made = {}
    for info in build(block).graph.input:
        dims = info.type.tensor_type.shape.dim
        shape = tuple(d.dim_value if d.HasField("dim_value") else sizes[d.dim_param] for d in dims)
        made[info.name] = _content(info, shape, past, rng, blind)
    return made


def _content(
    info: onnx.ValueInfoProto,
    shape: tuple[int, ...],
    past: int,
    rng: np.random.Generator,
    blind: int,
) -> np.ndarray[Any, Any]:
    dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
    if info.name == "position_ids":
        return np.broadcast_to(np.arange(past, past + shape[1]), shape).astype(dtype)
    if not info.name.startswith("attention_mask"):
        return rng.standard_normal(shape).astype(dtype)
    query, total = shape[-2:]
    allowed = np.arange(total) <= np.arange(query)[:, None] + total - query
    allowed = np.broadcast_to(allowed, shape).copy()
    allowed[1:, :, :, 1 : total // 2] &= np.arange(1, total // 2) % 2 == 0
    allowed[0, :, :blind] = False
    if dtype != np.bool_:
        return np.where(allowed, rng.standard_normal(shape), -np.inf).astype(dtype)
    return ~allowed if info.name == "attention_mask_blocked" else allowed


# The parts of a layer


def _rows(tape: Tape, hidden: str) -> tuple[str, str | None]:
    """New rows: c_kv after its norm, k_pe after its rotary embedding."""
    block = tape.block
    made = tape(
        "MatMul", hidden, tape.weight("kv_a_proj.weight", block.hidden, block.latent + block.rope)
    )
    raw = None
    if block.rope:
        made, raw = tape("Split", made, tape.ints(block.latent, block.rope), outputs=2, axis=2)
    named = f"c_kv_{tape.layer}"
    latent = tape("Tanh", made, name=named if block.row_rank == 3 else "")
    if block.row_rank == 4:
        latent = tape("Unsqueeze", latent, tape.ints(1), name=named)
    rope = None
    if raw is not None:
        rope = _rotary(tape, tape("Unsqueeze", raw, tape.ints(1)), f"k_pe_{tape.layer}")
    if rope is not None and block.row_rank == 3:
        rope = tape("Squeeze", rope, tape.ints(1))
    return tape.at("c_kv", latent), tape.at("k_pe", rope)


def _rotary(tape: Tape, value: str, name: str) -> str:
    block = tape.block
    positions = tape.input("position_ids", (block.batch, block.query_len), TensorProto.INT64)
    if not any(node.output[0] == "cos" for node in tape.nodes):
        steps = tape("Cast", positions, to=tape.kind)
        column = tape("Unsqueeze", steps, tape.ints(1, 3))
        pace = 10.0 ** -np.arange(0, 1, 2 / block.rope).astype(block.dtype)
        angle = tape("Mul", column, tape.stored(pace, "inv_freq"))
        tape("Cos", angle, name="cos")
        tape("Sin", angle, name="sin")
    half = block.rope // 2
    first, second = tape("Split", value, tape.ints(half, half), outputs=2, axis=3)
    left = tape("Sub", tape("Mul", first, "cos"), tape("Mul", second, "sin"))
    right = tape("Add", tape("Mul", second, "cos"), tape("Mul", first, "sin"))
    return tape("Concat", left, right, axis=3, name=name)


def _cached(tape: Tape, rows: tuple[str, str | None]) -> tuple[str, str | None]:
    """Past rows in front of the new ones."""
    block = tape.block
    latent, rope = rows
    if block.cache == "packed":
        assert rope is not None
        past = tape.input(f"past.{tape.layer}", (block.batch, 1, block.past_len, _row_width(block)))
        joined = tape("Concat", past, tape("Concat", latent, rope, axis=3), axis=2)
        present = f"present.{tape.layer}"
        tape.output(joined, present, (block.batch, 1, block.total_len, _row_width(block)))
        parts = tape("Split", present, tape.ints(block.latent, block.rope), outputs=2, axis=3)
        return parts[0], parts[1]
    if block.cache != "latent":
        return rows
    names = zip(block.halves(tape.layer, "past"), block.halves(tape.layer, "present"))
    first = _join(tape, latent, block.latent, *next(names))
    second = None if rope is None else _join(tape, rope, block.rope, *next(names))
    return first, second


def _row_width(block: Block) -> int:
    return block.latent + block.rope


def _join(tape: Tape, new: str, width: int, past: str, present: str, heads: int = 1) -> str:
    block = tape.block
    ones = (heads,) if block.row_rank == 4 or heads > 1 else ()
    old = tape.input(past, (block.batch, *ones, block.past_len, width))
    axis = 2 if ones else 1
    joined = tape("Concat", old, new, axis=axis)
    tape.output(joined, present, (block.batch, *ones, block.total_len, width))
    return tape.at("joined", present)


def _attention(tape: Tape, hidden: str, rows: tuple[str, str | None]) -> str:
    block = tape.block
    key, value = _keys_and_values(tape, *rows)
    query = tape.at("query", _ordered(tape, _query(tape, hidden)))
    context = (
        _fused(tape, query, key, value)
        if block.core == "fused"
        else _eager(tape, query, key, value, rows[0])
    )
    context = tape.at("context", context)
    flat = tape(
        "Reshape",
        tape("Transpose", context, perm=[0, 2, 1, 3]),
        tape.ints(0, 0, block.heads * block.value),
    )
    flat = tape.at("flat", flat)
    weight = tape.weight("o_proj.weight", block.heads * block.value, block.hidden)
    return tape.at("projected", tape("MatMul", flat, weight, name=f"attended_{tape.layer}"))


def _query(tape: Tape, hidden: str) -> str:
    block = tape.block
    width = block.heads * block.width
    source, fan_in = hidden, block.hidden
    if block.q_lora is not None:
        source = tape("MatMul", hidden, tape.weight("q_a_proj.weight", block.hidden, block.q_lora))
        source, fan_in = tape("Tanh", source, name=f"q_latent_{tape.layer}"), block.q_lora
    rows = tape("MatMul", source, tape.weight("q_b_proj.weight", fan_in, width))
    rows = tape.at("query_rows", rows)
    heads = tape("Reshape", rows, tape.ints(0, 0, block.heads, -1))
    if not block.rope:
        return tape("Transpose", heads, perm=[0, 2, 1, 3], name=f"query_{tape.layer}")
    query = tape("Transpose", heads, perm=[0, 2, 1, 3])
    nope, rope = tape.at(
        "query_parts",
        tape(
            "Split",
            query,
            tape.ints(block.nope, block.rope),
            name=f"q_parts_{tape.layer}",
            outputs=2,
            axis=3,
        ),
    )
    rope = _rotary(tape, rope, f"q_pe_{tape.layer}")
    return tape("Concat", nope, rope, axis=3, name=f"query_{tape.layer}")


def _ordered(tape: Tape, value: str) -> str:
    order = tape.block.order
    if order is None:
        return value
    return tape("Gather", value, tape.ints(*np.argsort(order).tolist()), axis=3)


def _keys_and_values(tape: Tape, latent: str, rope: str | None) -> tuple[str, str]:
    block = tape.block
    made = tape.at("made", _project(tape, latent))
    heads = tape("Reshape", made, tape.ints(0, -1, block.heads, block.nope + block.value))
    by_head = tape("Transpose", heads, perm=[0, 2, 1, 3])
    nope, value = tape.at(
        "parts", tape("Split", by_head, tape.ints(block.nope, block.value), outputs=2, axis=3)
    )
    key = tape.at("key", _ordered(tape, _put_together(tape, nope, rope)))
    value = tape.at("value", value)
    if block.cache == "expanded":
        names = zip(block.halves(tape.layer, "past"), block.halves(tape.layer, "present"))
        key = _join(tape, key, block.width, *next(names), heads=block.heads)
        value = _join(tape, value, block.value, *next(names), heads=block.heads)
    return tape.at("keys", key), tape.at("values", value)


def _project(tape: Tape, latent: str) -> str:
    """W_UK and W_UV of all heads in one layer, however its weight is stored."""
    block = tape.block
    width = block.heads * (block.nope + block.value)
    latent = tape.at("latent", latent)
    weight = tape.weight("kv_b_proj.weight", block.latent, width)
    if block.storage == "gemm":
        flat = tape("Reshape", latent, tape.ints(-1, block.latent))
        axes = (0, block.row_rank - 2)
        sizes = [tape("Shape", latent, start=axis, end=axis + 1) for axis in axes]
        shape = tape("Concat", *sizes, tape.ints(width), axis=0)
        made = tape("Reshape", tape("Gemm", flat, weight), shape)
    elif block.storage == "dequantized":
        content = np.clip(tape.numbers("kv_b_proj.weight", block.latent, width) * 60, -127, 127)
        stored = tape.stored(content.astype(np.int8), tape.named("kv_b_proj.quantized"))
        made = tape("MatMul", latent, tape("DequantizeLinear", stored, tape.scalar(1 / 60)))
    elif block.storage == "transposed":
        content = tape.numbers("kv_b_proj.weight", block.latent, width).T
        stored = tape.stored(content, tape.named("kv_b_proj.transposed"))
        made = tape("MatMul", latent, tape("Transpose", stored, perm=[1, 0]))
    else:
        made = tape("MatMul", latent, tape.at("kv_weight", weight), name=f"made_{tape.layer}")
    if not block.value_bias:
        return made
    offset = tape.numbers("kv_b_proj.bias", block.heads, block.nope + block.value)
    offset[:, : block.nope] = 0
    return tape("Add", made, tape.stored(offset.reshape(-1), tape.named("kv_b_proj.bias")))


def _put_together(tape: Tape, nope: str, rope: str | None) -> str:
    block = tape.block
    if rope is None:
        return nope
    if block.row_rank == 3:
        rope = tape("Unsqueeze", rope, tape.ints(1))
    shared = tape("Expand", rope, tape.ints(1, block.heads, 1, 1), name=f"k_pe_heads_{tape.layer}")
    shared = tape.at("key_rope", shared)
    if block.keys == "concat":
        return tape("Concat", nope, shared, axis=3, name=f"key_{tape.layer}")
    return _scattered(tape, nope, shared)


def _scattered(tape: Tape, nope: str, rope: str) -> str:
    """What exporters make of assigning two slices: ScatterND along the first axis, twice."""
    block = tape.block
    turn = {"perm": [3, 1, 2, 0]}
    sizes = [tape("Shape", nope, start=axis, end=axis + 1) for axis in range(3)]
    whole = tape("Concat", *sizes, tape.ints(block.width), axis=0)
    empty = tape("ConstantOfShape", whole, value=_zero(tape.kind))
    data = tape("Transpose", empty, **turn)
    for part, start, end in ((nope, 0, block.nope), (rope, block.nope, block.width)):
        places = tape.stored(np.arange(start, end)[:, None], f"places_{start}_{end}")
        data = tape("ScatterND", data, places, tape("Transpose", part, **turn))
    return tape("Transpose", data, **turn)


def _zero(kind: int) -> onnx.TensorProto:
    return helper.make_tensor("zero", kind, [1], [0.0])


def _eager(tape: Tape, query: str, key: str, value: str, latent: str) -> str:
    block = tape.block
    if block.scale_on in ("query", "both"):
        factor = block.scale if block.scale_on == "query" else block.scale**0.5
        query = tape("Mul", query, tape.scalar(factor))
    if block.scale_on == "key_heads":
        key = tape("Mul", key, tape.scalar(block.scale))
    turned = tape("Transpose", key, perm=[0, 1, 3, 2])
    if block.scale_on in ("key", "both"):
        factor = block.scale if block.scale_on == "key" else block.scale**0.5
        turned = tape("Mul", turned, tape.scalar(factor))
    scores = tape("MatMul", query, turned, name=f"products_{tape.layer}")
    if block.scale_on == "scores":
        scores = tape("Mul", scores, tape.scalar(block.scale))
    if block.scale_on == "divided":
        scores = tape("Div", scores, tape.scalar(1 / block.scale))
    scores = tape.at("scores", scores)
    scores = tape.at("masked", _masked(tape, scores, {"keys": key, "cache": latent}))
    probabilities = tape.at("probabilities", _softmax(tape, scores))
    return tape("MatMul", probabilities, value, name=f"context_{tape.layer}")


def _masked(tape: Tape, scores: str, shaped: dict[str, str]) -> str:
    block = tape.block
    shape = (block.batch, 1, block.query_len, block.total_len)
    if block.bias in ("boolean", "both"):
        mask = tape.input("attention_mask_allowed", shape, TensorProto.BOOL)
        scores = tape("Where", mask, scores, tape.scalar(block.fill))
    if block.bias == "blocked":
        mask = tape.input("attention_mask_blocked", shape, TensorProto.BOOL)
        scores = tape("Where", mask, tape.scalar(block.fill), scores)
    if block.bias in ("additive", "both"):
        mask = tape.input("attention_mask", shape)
        scores = tape("Add", scores, mask)
    if block.bias == "computed":
        shaped["scores"] = scores
        scores = tape("Add", scores, _computed_mask(tape, shaped[block.mask_from]))
    return scores


def _computed_mask(tape: Tape, shaped: str) -> str:
    """Causal, from the positions and a number of keys that is read off a tensor."""
    block = tape.block
    axis = 3 if block.mask_from == "scores" else 2
    total = tape("Squeeze", tape("Shape", shaped, start=axis, end=axis + 1), tape.ints(0))
    zero = tape.stored(np.asarray(0, dtype=np.int64), "int_zero")
    one = tape.stored(np.asarray(1, dtype=np.int64), "int_one")
    places = tape("Range", zero, total, one)
    positions = tape.input("position_ids", (block.batch, block.query_len), TensorProto.INT64)
    column = tape("Unsqueeze", positions, tape.ints(1, 3))
    allowed = tape("LessOrEqual", places, column)
    return tape("Where", allowed, tape.scalar(0.0), tape.scalar(-1e30))


def _softmax(tape: Tape, scores: str) -> str:
    block = tape.block
    if block.guarded:
        scores = tape("Cast", scores, to=TensorProto.FLOAT)
    if block.sink:
        scores = _with_sinks(tape, scores)
    if block.guarded:
        axes = {"axes": [-1]} if block.opset < 18 else {}
        last = () if block.opset < 18 else (tape.ints(-1),)
        scores = tape("Sub", scores, tape("ReduceMax", scores, *last, keepdims=1, **axes))
    weights = tape("Softmax", scores, axis=-1)
    if block.guarded:
        zero = tape.stored(np.zeros((), np.float32), "guard_zero")
        weights = tape("Where", tape("IsNaN", weights), zero, weights)
        weights = tape("Cast", weights, to=tape.kind)
    if block.sink:
        weights = tape("Slice", weights, tape.ints(0), tape.ints(-1), tape.ints(3))
    return weights


def _with_sinks(tape: Tape, scores: str) -> str:
    """One more column of scores, the same for every query of a head."""
    block = tape.block
    stored = tape.weight("sinks", block.heads)
    column = tape("Reshape", stored, tape.ints(1, block.heads, 1, 1))
    batch = tape("Shape", scores, start=0, end=1)
    rows = tape("Shape", scores, start=2, end=3)
    shape = tape("Concat", batch, tape.ints(block.heads), rows, tape.ints(1), axis=0)
    column = tape("Expand", column, shape)
    if block.guarded:
        column = tape("Cast", column, to=TensorProto.FLOAT)
    return tape("Concat", scores, column, axis=3)


def _fused(tape: Tape, query: str, key: str, value: str) -> str:
    block = tape.block
    shape = (block.batch, 1, block.query_len, block.total_len)
    operands = [query, key, value]
    if block.bias == "additive":
        operands.append(tape.input("attention_mask", shape))
    if block.bias == "boolean":
        operands.append(tape.input("attention_mask_allowed", shape, TensorProto.BOOL))
    attributes = {"scale": block.scale, "is_causal": int(block.causal)}
    return tape.at(
        "attention", tape("Attention", *operands, name=f"context_{tape.layer}", **attributes)
    )
