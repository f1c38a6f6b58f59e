"""ONNX Runtime's GroupQueryAttention: causal, with caches that are buffers.

    past keys [B, J, P, D] -- room --+
                                     +-- rows of each sequence put in --> present keys [B, J, M, D]
    new keys  [B, S, J D]  ----------+

``M`` is ``total_sequence_length``, or ``P`` if that is more. ``seqlens_k`` is the place of each
sequence's last new row. Its new rows end there: they begin at ``max(seqlens_k + 1 - S, 0)``, and
each query sees the keys up to its own. Prompts that are padded at their end are no exception.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs.onnx.reading import OPAQUE, Facts, attribute, operand

_OPERANDS = {
    7: "cos_cache",
    8: "sin_cache",
    10: "attention_bias",
    11: "head_sink",
    12: "k_scale",
    13: "v_scale",
    14: "q_norm_weight",
    15: "k_norm_weight",
    16: "query_seqlens",
}
"""Operands that do more than is read; ``position_ids`` are for rotary embedding alone."""

_ATTRIBUTES: dict[str, int | float] = {
    "do_rotary": 0,
    "softcap": 0.0,
    "local_window_size": -1,
    "sliding_window_cache": 0,
    "smooth_softmax": 0,
    "qk_output": 0,
    "causal": 1,
}
"""Attributes, and the value with which they do nothing."""


def group_query_attention(facts: Facts, node: ir.Node) -> op.Operation:
    """The attention that a node is, with what it does beyond that in words."""
    query, key, value = (operand(node, place) for place in range(3))
    heads, key_heads = (int(attribute(node, name, 0)) for name in ("num_heads", "kv_num_heads"))
    width = None if query is None else facts.width(query)
    if query is None or width is None or not heads or width % heads:
        return OPAQUE
    past = _buffers(node)
    return op.FusedAttention(
        query=query,
        key=key or query,
        value=value or query,
        bias=None,
        scale=float(attribute(node, "scale", 0.0)) or 1.0 / math.sqrt(width // heads),
        causal=True,
        output=node.outputs[0],
        unsupported=_beyond(facts, node, past),
        flat=True,
        heads=heads,
        key_heads=key_heads,
        past=past,
    )


def _buffers(node: ir.Node) -> op.OwnCache | None:
    key, value, last, total = (operand(node, place) for place in (3, 4, 5, 6))
    returned = [output for output in node.outputs[1:3] if output.name]
    if key is None or value is None or last is None or total is None or len(returned) < 2:
        return None
    return op.OwnCache(key, value, returned[0], returned[1], last, total)


def _beyond(facts: Facts, node: ir.Node, past: op.OwnCache | None) -> str:
    if any(operand(node, place) is None for place in range(3)):
        return "queries, keys and values are not three operands [B, S, H D]"
    given = [name for place, name in _OPERANDS.items() if operand(node, place) is not None]
    given += [name for name, idle in _ATTRIBUTES.items() if attribute(node, name, idle) != idle]
    if given:
        return f"what {given[0]} does is not read"
    if past is None:
        return "it has no past keys and values, or does not return them with the new ones"
    return ""
