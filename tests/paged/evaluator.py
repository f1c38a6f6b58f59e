"""PagedAttention in NumPy float64, by ONNX Runtime's contract, and models run with it.

Written from the operator's documentation alone, token by token: nothing of the package is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

Arrays = dict[str, np.ndarray[Any, Any]]


def paged_attention(
    query, key, key_cache, cumulative, past_seqlens, block_table, slot_mapping, k_scale,
    *, num_heads: int, v_head_size: int, scale: float,
):  # fmt: skip
    """The output ``[T, H C]`` and the written cache, in float64; codes as they are stored."""
    check(query, key, key_cache, cumulative, past_seqlens, block_table, slot_mapping, k_scale)
    tokens, width = key.shape
    size = key_cache.shape[1]
    cache = key_cache.copy()
    codes = cache.dtype.name in ("int8", "float8_e4m3fn")
    scales = k_scale.reshape(width).astype(np.float64) if codes else np.ones(width)
    for token, slot in enumerate(slot_mapping):
        if slot >= 0:
            cache[slot // size, slot % size, 0] = stored(key[token], cache.dtype, scales)
    queries = query.reshape(tokens, num_heads, width).astype(np.float64)
    output = np.zeros((tokens, num_heads, v_head_size))
    for sequence, past in enumerate(past_seqlens):
        first, end = cumulative[sequence], cumulative[sequence + 1]
        for token in range(first, end):
            seen = range(int(past) + token - first + 1)
            pages = [(block_table[sequence, place // size], place % size) for place in seen]
            rows = [cache[block, at, 0] for block, at in pages if 0 <= block < len(cache)]
            if rows:
                keys = np.stack(rows).astype(np.float64) * scales
                output[token] = attend(queries[token], keys, scale, v_head_size)
    return output.reshape(tokens, -1), cache


def attend(queries, keys, scale: float, rank: int):
    """Softmax attention of ``[H, W]`` to ``[L, W]``; values are the first numbers of the keys."""
    scores = scale * queries @ keys.T
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True) @ keys[:, :rank]


def stored(row, dtype: np.dtype[Any], scales):
    """A row as the cache keeps it; a scale of 0 keeps nothing of its number."""
    if dtype.name not in ("int8", "float8_e4m3fn"):
        return row.astype(dtype)
    inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
    steps = row.astype(np.float64) * inverse
    if dtype.name == "int8":
        return np.clip(np.rint(steps), -128, 127).astype(dtype)
    return np.clip(steps, -448, 448).astype(np.float32).astype(dtype)


def check(query, key, key_cache, cumulative, past_seqlens, block_table, slots, k_scale) -> None:
    """What the operator refuses, or leaves undefined."""
    tokens, width = key.shape
    blocks, size = key_cache.shape[:2]
    codes = key_cache.dtype.name in ("int8", "float8_e4m3fn")
    kept = {
        "rows": key_cache.shape[2:] == (1, width) and width % 8 == 0,
        "blocks": size >= 16 and size & (size - 1) == 0,
        "query": query.shape[0] == tokens and query.shape[1] % width == 0,
        "types": query.dtype == key.dtype and (codes or key_cache.dtype == key.dtype),
        "lengths": cumulative.shape == (len(past_seqlens) + 1,),
        "ends": (cumulative[0], cumulative[-1]) == (0, tokens) and (np.diff(cumulative) >= 0).all(),
        "table": len(block_table) == len(past_seqlens) and (block_table >= -1).all(),
        "slots": slots.shape == (tokens,) and (slots < blocks * size).all(),
        "scale": k_scale.shape == (1, 1, width) if codes else k_scale is None,
        "integers": {a.dtype for a in (cumulative, past_seqlens, block_table, slots)}
        == {np.dtype(np.int32)},
    }
    assert all(kept.values()), [name for name, holds in kept.items() if not holds]


class PagedAttention(OpRun):
    """The operator of a node, with all that it may have beside what latent attention has."""

    op_domain = "com.microsoft"

    def _run(self, *inputs, **attributes):
        names = ("query", "key", "value", "key_cache", "value_cache", "cumulative", "past_seqlens",
                 "block_table", "cos_cache", "sin_cache", "slot_mapping", "head_sink", "q_norm",
                 "k_norm", "k_scale")  # fmt: skip
        given = dict(zip(names, inputs, strict=False))
        for absent in ("value", "value_cache", "cos_cache", "sin_cache", "head_sink", "q_norm"):
            assert given.get(absent) is None
        node = {attribute.name: onnx.helper.get_attribute_value(attribute)
                for attribute in self.onnx_node.attribute}  # fmt: skip
        assert (node["kv_cache_layout"], node["kv_num_heads"]) == (b"LATENT", 1)
        assert (node.get("k_quant_type") == b"PER_CHANNEL") == (given.get("k_scale") is not None)
        operands = [given.get(name) for name in names if name in (
            "query", "key", "key_cache", "cumulative", "past_seqlens", "block_table",
            "slot_mapping")]  # fmt: skip
        output, cache = paged_attention(
            *operands, given.get("k_scale"), num_heads=node["num_heads"],
            v_head_size=node["v_head_size"], scale=node["scale"],
        )  # fmt: skip
        return output.astype(given["query"].dtype), cache


def evaluate(model: ir.Model, feeds: Arrays) -> Arrays:
    """Outputs of a model by name, every operator in NumPy."""
    evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[PagedAttention])
    return dict(zip(evaluator.output_names, evaluator.run(None, feeds)))
