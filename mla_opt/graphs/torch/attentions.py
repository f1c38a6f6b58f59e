"""Attentions among aten's operators."""

from __future__ import annotations

import math
from typing import Any, cast

from torch import fx

from mla_opt.graphs import operations as op
from mla_opt.graphs.torch.lifted_program import symbolic_shape
from mla_opt.graphs.torch.reading import (
    OPAQUE,
    Facts,
    Reader,
    handle,
    operand,
    rank_of,
    tensor_of,
)


def _attention(facts: Facts, node: fx.Node) -> op.Operation:
    """``scaled_dot_product_attention`` as it was written."""
    query, key, value, bias = (tensor_of(operand(node, index)) for index in range(4))
    if query is None or key is None or value is None:
        return OPAQUE
    bias = bias or tensor_of(node.kwargs.get("attn_mask"))
    dropout, causal = operand(node, 4, "dropout_p"), operand(node, 5, "is_causal")
    return _fused(node, node, (query, key, value), bias, dropout, causal)


def _flash_attention(facts: Facts, node: fx.Node) -> op.Operation:
    """What the CPU's dispatch makes of it: output and log-sum-exp."""
    query, key, value = (tensor_of(operand(node, index)) for index in range(3))
    outputs = [user for user in node.users if user.args[1:] == (0,)]
    if query is None or key is None or value is None or len(outputs) != 1:
        return OPAQUE
    bias = tensor_of(node.kwargs.get("attn_mask"))
    dropout, causal = operand(node, 3, "dropout_p"), operand(node, 4, "is_causal")
    return _fused(node, outputs[0], (query, key, value), bias, dropout, causal)


def _fused(
    node: fx.Node,
    output: fx.Node,
    operands: tuple[fx.Node, fx.Node, fx.Node],
    bias: fx.Node | None,
    dropout: Any,
    causal: Any,
) -> op.Operation:
    query, key, value = operands
    shape, scale = symbolic_shape(query), node.kwargs.get("scale")
    if isinstance(scale, fx.Node):  # it follows from sizes
        return OPAQUE
    if scale is None and (not shape or not isinstance(shape[-1], int)):
        return OPAQUE
    return op.FusedAttention(
        query=handle(query),
        key=handle(key),
        value=handle(value),
        bias=None if bias is None else handle(bias),
        scale=float(cast(float, scale)) if scale is not None else 1.0 / math.sqrt(shape[-1]),  # type: ignore[index]
        causal=bool(causal),
        output=handle(output),
        unsupported=_beyond_plain_attention(node, query, key, dropout),
    )


def _beyond_plain_attention(node: fx.Node, query: fx.Node, key: fx.Node, dropout: Any) -> str:
    if rank_of(query) < 3:
        return "its operands have no axis of sequences or heads"
    if dropout:
        return "it drops out weights; export the model for inference"
    return ""


READERS: dict[str, Reader] = {
    "scaled_dot_product_attention": _attention,
    "_scaled_dot_product_flash_attention_for_cpu": _flash_attention,
}
