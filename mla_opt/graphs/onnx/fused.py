"""The fused operators of an ONNX graph, in its branches too."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.operator import contract
from mla_opt.sites import FusedAttention


def fused_attentions(graph: OnnxGraph) -> Sequence[FusedAttention]:
    """Every ``LatentAttention``, in the order of the nodes."""
    nodes = ir.traversal.RecursiveGraphIterator(graph.model.graph)
    ours = (n for n in nodes if (n.domain, n.op_type) == (contract.DOMAIN, contract.OP_TYPE))
    return [_fused(graph, node) for node in ours if node.inputs and node.inputs[0] is not None]


def _fused(graph: OnnxGraph, node: ir.Node) -> FusedAttention:
    operands = {name: v for name, v in zip(contract.INPUTS, node.inputs) if v is not None}
    query = operands["query"]
    return FusedAttention(
        label=graph.label(node),
        query=query.name or "",
        shapes={name: _shape(graph, value) for name, value in operands.items()},
        scale=node.attributes.get_float("scale", 0.0),
        kv_lora_rank=node.attributes.get_int("kv_lora_rank", 0),
        dtype="unknown" if query.dtype is None else str(query.dtype.numpy()),
    )


def _shape(graph: OnnxGraph, value: ir.Value) -> tuple[int | None, ...] | None:
    """What the file declares, or what follows from its inputs in the main graph."""
    if value.shape is not None:
        return tuple(size if isinstance(size, int) else None for size in value.shape)
    return graph.example_shape(value) if value.graph is graph.model.graph else None
