"""Shapes of attentions that are one operator."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.shape_rules.facts import Facts, Shape, attribute, shape_at


def of_attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """The ONNX operator; heads are counted by attributes where operands have three axes."""
    query, value = shape_at(facts, node, 0), shape_at(facts, node, 2)
    if query is None or value is None:
        return ()
    if len(query) == 4 and len(value) == 4:
        return ((*query[:3], value[3]), *_joined_caches(facts, node, 4))
    heads, of_values = attribute(node, "q_num_heads"), attribute(node, "kv_num_heads")
    if len(query) != 3 or len(value) != 3 or not heads or not of_values:
        return ()
    width = sizes.quotient(value[2], of_values)
    if width is None:
        return ()
    made = (query[0], query[1], sizes.product((width, heads)))
    return (made, *_joined_caches(facts, node, 4))


def _joined_caches(facts: Facts, node: ir.Node, place: int) -> Sequence[Shape | None]:
    """Of past keys and values ``[B, H, P, D]``, an operand each, and new rows."""
    key = shape_at(facts, node, 1)
    pasts = [shape_at(facts, node, place), shape_at(facts, node, place + 1)]
    if key is None or any(past is None or len(past) != 4 for past in pasts):
        return ()
    new = key[2] if len(key) == 4 else key[1]
    return tuple((*past[:2], past[2] + new, past[3]) for past in pasts if past is not None)


def of_group_query_attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """The same, with caches whose sizes are what the file declares."""
    query = shape_at(facts, node, 0)
    return () if query is None or shape_at(facts, node, 1) is None else (query,)


def of_multi_head_attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """ONNX Runtime's operator of ``[B, S, H D]``."""
    query, value = shape_at(facts, node, 0), shape_at(facts, node, 2)
    if query is None or value is None or len(query) != 3 or len(value) != 3:
        return ()
    return ((*query[:2], value[2]), *_joined_caches(facts, node, 6))


def of_paged_attention(facts: Facts, node: ir.Node) -> Sequence[Shape | None]:
    """ONNX Runtime's operator over packed tokens ``[T, H D]`` and a cache of latent rows."""
    query, heads, width = (
        shape_at(facts, node, 0),
        attribute(node, "num_heads"),
        attribute(node, "v_head_size"),
    )
    if query is None or attribute(node, "kv_cache_layout") != "LATENT" or not heads or not width:
        return ()
    return ((query[0], heads * width), shape_at(facts, node, 3))
