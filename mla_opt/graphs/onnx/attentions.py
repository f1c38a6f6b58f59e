"""Attention operators: ONNX's own, and those of ONNX Runtime."""

from __future__ import annotations

import math

import onnx_ir as ir

from mla_opt.graphs import operations as op
from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.group_query import group_query_attention
from mla_opt.graphs.onnx.reading import OPAQUE, Facts, Reader, attribute, operand


def _attention(facts: Facts, node: ir.Node) -> op.Operation:
    """The ONNX operator of opset 23 and 24; operands of three axes hold the heads side by side."""
    query, key, value = (operand(node, index) for index in range(3))
    if query is None or key is None or value is None:
        return OPAQUE
    flat = facts.rank(query) == 3
    heads, key_heads = _attention_heads(facts, node, query, key, flat)
    width = facts.width(query)
    if flat and width is not None and heads:
        width //= heads
    scale = node.attributes.get("scale")
    if scale is None and width is None:
        return OPAQUE
    return op.FusedAttention(
        query=query,
        key=key,
        value=value,
        bias=operand(node, 3),
        scale=scale.value if scale is not None else 1.0 / math.sqrt(width or 1),
        causal=bool(attribute(node, "is_causal", 0)),
        output=node.outputs[0],
        unsupported=_beyond_plain_attention(facts, node, heads),
        flat=flat,
        heads=heads,
        key_heads=key_heads,
        past=_own_cache(node, (4, 5)) if heads and key_heads else None,
        lengths=operand(node, 6),
    )


def _own_cache(node: ir.Node, places: tuple[int, int]) -> op.OwnCache | None:
    """The cache that a node joins rows to, where it has one and returns it."""
    key, value = (operand(node, place) for place in places)
    returned = [output for output in node.outputs[1:3] if output.name]
    if key is None or value is None or len(returned) < 2:
        return None
    return op.OwnCache(key, value, *returned)


def _attention_heads(
    facts: Facts, node: ir.Node, query: ir.Value, key: ir.Value, flat: bool
) -> tuple[int | None, int | None]:
    """Heads of the query, and of keys and values, where they are numbers."""
    if flat:
        counts = (attribute(node, name, 0) for name in ("q_num_heads", "kv_num_heads"))
        of_query, of_keys = (int(count) or None for count in counts)
        return of_query, of_keys
    shapes = facts.shape(query), facts.shape(key)
    sizes = [shape[1] if shape is not None and len(shape) == 4 else None for shape in shapes]
    of_query, of_keys = (size if isinstance(size, int) else None for size in sizes)
    return of_query, of_keys


def _beyond_plain_attention(facts: Facts, node: ir.Node, heads: int | None) -> str:
    if heads is None:
        return "how many heads it has is not a number"
    if attribute(node, "softcap", 0.0):
        return "it caps its scores (softcap)"
    if any(value is not None for value in node.inputs[7:]):
        return "what its operands behind nonpad_kv_seqlen do is not read"
    if any(attribute(node, name, -1) != -1 for name in ("left_window_size", "right_window_size")):
        return "its queries attend to a window (left_window_size, right_window_size)"
    if operand(node, 6) is not None and not _masks_all_keys(facts, node):
        return "its mask may have fewer columns than there are keys, beside nonpad_kv_seqlen"
    own = _own_cache(node, (4, 5)) is not None
    if own and operand(node, 6) is not None:
        return "it has a cache of its own beside nonpad_kv_seqlen"
    if not own and any(value is not None for value in node.inputs[4:6]):
        return "it reads past keys and values, and does not return them with the new ones"
    if any(_is_read(value) for value in node.outputs[3 if own else 1 :]):
        return "its scores or keys are read"
    return ""


def _masks_all_keys(facts: Facts, node: ir.Node) -> bool:
    """Whether the mask, if there is one, is known to have a column for every key."""
    mask, key = operand(node, 3), operand(node, 1)
    if mask is None or key is None:
        return mask is None
    of_mask, of_key = facts.shape(mask), facts.shape(key)
    if not of_mask or of_key is None or len(of_key) not in (3, 4):
        return False
    return sizes.same(of_mask[-1], of_key[2 if len(of_key) == 4 else 1])


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_output()


def _multi_head_attention(facts: Facts, node: ir.Node) -> op.Operation:
    """ONNX Runtime's operator of ``[B, S, H D]``."""
    query = operand(node, 0)
    heads, width = (
        int(attribute(node, "num_heads", 0)),
        None if query is None else facts.width(query),
    )
    if query is None or width is None or not heads or width % heads:
        return OPAQUE
    scale = float(attribute(node, "scale", 0.0)) or 1.0 / math.sqrt(width // heads)
    past = _own_cache(node, (6, 7))
    return op.FusedAttention(
        query=query,
        key=operand(node, 1) or query,
        value=operand(node, 2) or query,
        bias=operand(node, 5),
        scale=scale,
        causal=bool(attribute(node, "unidirectional", 0)),
        output=node.outputs[0],
        unsupported=_beyond_plain_heads(facts, node, past),
        flat=True,
        heads=heads,
        key_heads=heads,
        past=past,
    )


def _beyond_plain_heads(facts: Facts, node: ir.Node, past: op.OwnCache | None) -> str:
    operands = [operand(node, place) for place in range(3)]
    if any(value is None or facts.rank(value) != 3 for value in operands):
        return "queries, keys and values are not three operands [B, S, H D]"
    refused = {3: "bias", 4: "key_padding_mask", 8: "past_sequence_length", 9: "cache_indirection"}
    given = [name for place, name in refused.items() if operand(node, place) is not None]
    if given:
        return f"what its operand {given[0]} does is not read"
    if past is None and any(operand(node, place) is not None for place in (6, 7)):
        return "it reads past keys and values, and does not return them with the new ones"
    if any(_is_read(value) for value in node.outputs[3 if past else 1 :]):
        return "its scores or keys are read"
    return ""


READERS: dict[tuple[str, str], Reader] = {
    ("", "Attention"): _attention,
    ("com.microsoft", "MultiHeadAttention"): _multi_head_attention,
    ("com.microsoft", "GroupQueryAttention"): group_query_attention,
}
