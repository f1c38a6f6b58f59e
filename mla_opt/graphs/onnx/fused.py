"""The fused operators of an ONNX graph, in its branches too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.operator import contract
from mla_opt.operator.multi_head import INPUTS as MULTI_HEAD_INPUTS
from mla_opt.operator.multi_head import MULTI_HEAD_OP_TYPES
from mla_opt.operator.paged_attention import DOMAIN as RUNTIME_DOMAIN
from mla_opt.operator.paged_attention import INPUTS as PAGED_INPUTS
from mla_opt.operator.paged_attention import OP_TYPE as PAGED_ATTENTION
from mla_opt.sites import FusedAttention

_INPUTS: dict[tuple[str, str], tuple[str, ...]] = {
    **{(contract.DOMAIN, name): contract.INPUTS for name in contract.OP_TYPES},
    **{(contract.DOMAIN, name): MULTI_HEAD_INPUTS for name in MULTI_HEAD_OP_TYPES},
    (RUNTIME_DOMAIN, PAGED_ATTENTION): PAGED_INPUTS,
}
_MOVES = frozenset({"Cast", "Reshape", "Transpose"})


def fused_attentions(graph: OnnxGraph) -> Sequence[FusedAttention]:
    """Every fused operator, in the order of the nodes."""
    nodes = ir.traversal.RecursiveGraphIterator(graph.model.graph)
    names = ((node, _INPUTS.get((node.domain, node.op_type))) for node in nodes)
    return [
        _fused(graph, node, inputs)
        for node, inputs in names
        if inputs is not None and node.inputs and node.inputs[0] is not None
    ]


def _fused(graph: OnnxGraph, node: ir.Node, inputs: Sequence[str]) -> FusedAttention:
    operands = {name: v for name, v in zip(inputs, node.inputs) if v is not None}
    if node.op_type == PAGED_ATTENTION:
        return _paged(graph, node, operands)
    query = operands["query"]
    return FusedAttention(
        label=graph.label(node),
        query=query.name or "",
        shapes={name: _shape(graph, value) for name, value in operands.items()},
        scale=node.attributes.get_float("scale", 0.0),
        kv_lora_rank=node.attributes.get_int("kv_lora_rank", 0),
        dtype="unknown" if query.dtype is None else str(query.dtype.numpy()),
        cache_dtype=_dtype(operands.get("cache")),
    )


def _paged(graph: OnnxGraph, node: ir.Node, operands: Mapping[str, ir.Value]) -> FusedAttention:
    """ONNX Runtime's operator, whose query comes packed and in its own type."""
    query = packed = operands["query"]
    while (maker := query.producer()) is not None and maker.op_type in _MOVES:
        if maker.inputs[0] is None:
            break
        query = maker.inputs[0]
    cache = operands.get("key_cache")
    return FusedAttention(
        label=graph.label(node),
        query=query.name or "",
        shapes={
            "query": (
                None,
                node.attributes.get_int("num_heads", 0),
                None,
                _row_width(graph, cache),
            ),
            "block_table": None,
        },
        scale=node.attributes.get_float("scale", 0.0),
        kv_lora_rank=node.attributes.get_int("v_head_size", 0),
        dtype=_dtype(packed) or "unknown",
        cache_dtype=_dtype(cache),
    )


def _row_width(graph: OnnxGraph, cache: ir.Value | None) -> int | None:
    shape = None if cache is None else _shape(graph, cache)
    return shape[-1] if shape else None


def _dtype(value: ir.Value | None) -> str | None:
    return None if value is None or value.dtype is None else str(value.dtype.numpy())


def _shape(graph: OnnxGraph, value: ir.Value) -> tuple[int | None, ...] | None:
    """What the file declares, or what follows from its inputs in the main graph."""
    if value.shape is not None:
        return tuple(size if isinstance(size, int) else None for size in value.shape)
    return graph.example_shape(value) if value.graph is graph.model.graph else None
