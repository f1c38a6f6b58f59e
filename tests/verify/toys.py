"""Small language models with one latent attention, written out: as exported, and as optimized.

The original expands the cached latent, the optimized absorbs. All are drawn from the same weights,
so that each optimized form computes exactly what each original computes.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass

import numpy as np
import onnx
import onnx.parser
from onnx import numpy_helper

VOCABULARY, HIDDEN, HEADS = 23, 18, 3
NOPE, ROPE, VALUE, LATENT = 5, 4, 7, 11
SCALE = 1 / math.sqrt(NOPE + ROPE)
CAPACITY = 32
ROW = LATENT + ROPE

ORIGINAL_INPUTS = ("past_0_keys", "past_0_values")
ORIGINAL_OUTPUTS = ("present_0_keys", "present_0_values")


@dataclass(frozen=True)
class Form:
    """Pieces of a model's text: its cache, how that grows to `keys` and `values`, its attention."""

    inputs: str
    outputs: str
    append: str
    attend: str


SPLIT = Form(
    f"float[B, 1, P, {LATENT}] past_0_keys, float[B, 1, P, {ROPE}] past_0_values",
    f"float[B, 1, Q, {LATENT}] present_0_keys, float[B, 1, Q, {ROPE}] present_0_values",
    """
    present_0_keys = Concat<axis = 2>(past_0_keys, new_c)
    present_0_values = Concat<axis = 2>(past_0_values, new_pe)
    keys = Identity(present_0_keys)
    values = Identity(present_0_values)
    """,
    "",
)
PACKED = Form(
    f"float[B, 1, P, {ROW}] past_0_latent",
    f"float[B, 1, Q, {ROW}] present_0_latent",
    """
    new_row = Concat<axis = 3>(new_c, new_pe)
    present_0_latent = Concat<axis = 2>(past_0_latent, new_row)
    keys, values = Split<axis = 3>(present_0_latent, row_parts)
    """,
    "",
)
STATIC = Form(
    f"float[B, 1, {CAPACITY}, {ROW}] buffer, int32[B] past_len",
    f"float[B, 1, {CAPACITY}, {ROW}] buffer_after",
    """
    new_row = Concat<axis = 3>(new_c, new_pe)
    past_rows = Cast<to = 7>(past_len)
    start = Slice(past_rows, zero, one)
    stop = Add(start, query_len)
    before = Slice(buffer, zero, start, two)
    behind = Slice(buffer, stop, capacity, two)
    buffer_after = Concat<axis = 2>(before, new_row, behind)
    used = Slice(buffer_after, zero, stop, two)
    keys, values = Split<axis = 3>(used, row_parts)
    """,
    "",
)

EXPANDED_CACHE = Form(
    f"float[B, {HEADS}, P, {NOPE + ROPE}] past_0_keys, float[B, {HEADS}, P, {VALUE}] past_0_values",
    f"float[B, {HEADS}, Q, {NOPE + ROPE}] present_0_keys,"
    f" float[B, {HEADS}, Q, {VALUE}] present_0_values",
    """
    new_nope = MatMul(new_c, w_uk_t)
    new_k_pe = Expand(new_pe, head_ones)
    new_k = Concat<axis = 3>(new_nope, new_k_pe)
    new_v = MatMul(new_c, w_uv)
    present_0_keys = Concat<axis = 2>(past_0_keys, new_k)
    present_0_values = Concat<axis = 2>(past_0_values, new_v)
    keys = Identity(present_0_keys)
    """,
    """
    k_t = Transpose<perm = [0, 1, 3, 2]>(present_0_keys)
    scores = MatMul(q, k_t)
    scaled = Mul(scores, scale)
    biased = Add(scaled, bias)
    p = Softmax<axis = -1>(biased)
    context = MatMul(p, present_0_values)
    """,
)

EXPANDING = """
    k_nope = MatMul(keys, w_uk_t)
    k_pe = Expand(values, head_ones)
    k = Concat<axis = 3>(k_nope, k_pe)
    v = MatMul(keys, w_uv)
    k_t = Transpose<perm = [0, 1, 3, 2]>(k)
    scores = MatMul(q, k_t)
    scaled = Mul(scores, scale)
    biased = Add(scaled, bias)
    p = Softmax<axis = -1>(biased)
    context = MatMul(p, v)
"""
ABSORBED = """
    q_nope, q_pe = Split<axis = 3>(q, query_parts)
    q_c = MatMul(q_nope, w_uk)
    absorbed_query = Concat<axis = 3>(q_c, q_pe)
    rows = Concat<axis = 3>(keys, values)
    rows_t = Transpose<perm = [0, 1, 3, 2]>(rows)
    scores = MatMul(absorbed_query, rows_t)
    scaled = Mul(scores, scale)
    biased = Add(scaled, bias)
    p = Softmax<axis = -1>(biased)
    latent_context = MatMul(p, keys)
    context = MatMul(latent_context, w_uv)
"""


def text(form: Form, attend: str) -> str:
    """The whole model."""
    return f"""
<ir_version: 8, opset_import: ["" : 18]>
toy (int64[B, S] input_ids, int64[B, T] attention_mask, {form.inputs})
    => (float[B, S, {VOCABULARY}] logits, {form.outputs})
{{
    x = Gather<axis = 0>(embedding, input_ids)
    ids_shape = Shape(input_ids)
    query_len = Slice(ids_shape, one, two)
    q_flat = MatMul(x, w_q)
    q_heads = Reshape(q_flat, q_shape)
    q = Transpose<perm = [0, 2, 1, 3]>(q_heads)
    c = MatMul(x, w_c)
    new_c = Unsqueeze(c, one)
    pe = MatMul(x, w_pe)
    new_pe = Unsqueeze(pe, one)
    {form.append}
    mask_shape = Shape(attention_mask)
    total_len = Slice(mask_shape, one, two)
    size = Concat<axis = 0>(query_len, total_len)
    full = Expand(one_float, size)
    gap = Sub(total_len, query_len)
    diagonal = Add(gap, one)
    diagonal_scalar = Squeeze(diagonal)
    future = Trilu<upper = 1>(full, diagonal_scalar)
    present_mask = Cast<to = 1>(attention_mask)
    padding = Sub(one_float, present_mask)
    padding_keys = Unsqueeze(padding, one_two)
    hidden_keys = Add(future, padding_keys)
    bias = Mul(hidden_keys, lowest)
    {attend}
    out_heads = Transpose<perm = [0, 2, 1, 3]>(context)
    out_flat = Reshape(out_heads, o_shape)
    out = MatMul(out_flat, w_o)
    y = Add(x, out)
    logits = MatMul(y, w_head)
}}
"""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    """All initializers, by name."""
    generator = np.random.default_rng(seed)

    def noise(*shape: int) -> np.ndarray:
        return generator.standard_normal(shape).astype(np.float32) / np.float32(np.sqrt(shape[-2]))

    w_uk = noise(HEADS, NOPE, LATENT)
    integers = {
        "zero": [0], "one": [1], "two": [2], "one_two": [1, 2], "capacity": [CAPACITY],
        "q_shape": [0, 0, HEADS, NOPE + ROPE], "o_shape": [0, 0, HEADS * VALUE],
        "head_ones": [1, HEADS, 1, 1], "query_parts": [NOPE, ROPE], "row_parts": [LATENT, ROPE],
    }  # fmt: skip
    return {
        "embedding": noise(VOCABULARY, HIDDEN) * 4,
        "w_q": noise(HIDDEN, HEADS * (NOPE + ROPE)) * 2,
        "w_c": noise(HIDDEN, LATENT),
        "w_pe": noise(HIDDEN, ROPE),
        "w_uk": w_uk,
        "w_uk_t": np.ascontiguousarray(w_uk.swapaxes(1, 2)),
        "w_uv": noise(HEADS, LATENT, VALUE),
        "w_o": noise(HEADS * VALUE, HIDDEN),
        "w_head": noise(HIDDEN, VOCABULARY),
        "scale": np.float32(SCALE),
        "one_float": np.float32(1),
        "lowest": np.float32(-1e4),
        **{name: np.asarray(value, np.int64) for name, value in integers.items()},
    }


def build(form: Form, attend: str, metadata: dict[str, object] | None = None) -> onnx.ModelProto:
    """A model with the weights it uses."""
    model = onnx.parser.parse_model(text(form, attend))
    used = {name for node in model.graph.node for name in node.input}
    for name, value in weights().items():
        if name in used:
            model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    for key, content in (metadata or {}).items():
        model.metadata_props.add(key=key, value=json.dumps(content))
    onnx.checker.check_model(model)
    return model


def site(**changes: object) -> dict[str, object]:
    """The `mla_opt.sites` entry of the one attention."""
    entry: dict[str, object] = {
        "name": "attention.0", "query": "absorbed_query", "w_uk": "w_uk", "w_uv": "w_uv",
        "scale": SCALE, "kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE,
    }  # fmt: skip
    return entry | changes


def state(
    layout: str, inputs: list[str], outputs: list[str], **changes: object
) -> dict[str, object]:
    """The `mla_opt.interface` entry of the one cache."""
    entry: dict[str, object] = {
        "layer": "0",
        "original": {"inputs": list(ORIGINAL_INPUTS), "outputs": list(ORIGINAL_OUTPUTS)},
        "optimized": {"inputs": inputs, "outputs": outputs},
        "layout": layout, "kv_lora_rank": LATENT, "qk_rope_head_dim": ROPE, "num_heads": HEADS,
    }  # fmt: skip
    return entry | changes


def interface(entry: dict[str, object], **changes: object) -> dict[str, object]:
    """The `mla_opt.interface` metadata."""
    content: dict[str, object] = {
        "version": 1, "states": [entry], "past_len_input": None, "capacity": None,
    }  # fmt: skip
    return content | changes


def original() -> onnx.ModelProto:
    """Caches the latent in two tensors and expands it."""
    return build(SPLIT, EXPANDING)


def original_expanded() -> onnx.ModelProto:
    """Caches expanded keys and values."""
    return build(EXPANDED_CACHE, EXPANDED_CACHE.attend)


def optimized(**site_changes: object) -> onnx.ModelProto:
    """Absorbed, with the cache as it was."""
    return build(SPLIT, ABSORBED, {"mla_opt.sites": [site(**site_changes)]})


PACKED_MAP = interface(state("packed", ["past_0_latent"], ["present_0_latent"]))
STATIC_MAP = interface(
    state("static", ["buffer"], ["buffer_after"]), past_len_input="past_len", capacity=CAPACITY
)
SPLIT_MAP = interface(state("split", list(ORIGINAL_INPUTS), list(ORIGINAL_OUTPUTS)))


def optimized_packed() -> onnx.ModelProto:
    """Absorbed, with one tensor for the cache."""
    return build(PACKED, ABSORBED, {"mla_opt.sites": [site()], "mla_opt.interface": PACKED_MAP})


def optimized_static() -> onnx.ModelProto:
    """Absorbed, with a buffer of fixed capacity for the cache."""
    return build(STATIC, ABSORBED, {"mla_opt.sites": [site()], "mla_opt.interface": STATIC_MAP})


def optimized_from_expanded() -> onnx.ModelProto:
    """Absorbed, with the cache of `original_expanded` replaced by the latent in two tensors."""
    return build(SPLIT, ABSORBED, {"mla_opt.sites": [site()], "mla_opt.interface": SPLIT_MAP})


def with_initializer(model: onnx.ModelProto, name: str, value: np.ndarray) -> onnx.ModelProto:
    """A copy with one initializer replaced."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    tensor = next(t for t in copy.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
    return copy
