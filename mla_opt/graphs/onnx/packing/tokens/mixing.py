"""The first node of a graph over packed tokens that brings tokens together, if one does."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs import sizes
from mla_opt.graphs.onnx.graph import OnnxGraph
from mla_opt.graphs.onnx.packing.tokens.rules import made_of
from mla_opt.graphs.onnx.packing.tokens.states import Along, MixedTokensError, TokenWalk
from mla_opt.operator.paged_attention import OP_TYPE


def first_mixing(graph: OnnxGraph, tokens: str) -> tuple[ir.Node | None, str]:
    """The first node that brings tokens together, and how; no node and no words if none does.

    ``tokens`` is the symbol of the axis that they lie along. Without a node it is an output that
    is not one of tokens.
    """
    walk = TokenWalk(graph, sizes.symbol(tokens))
    for node in graph.nodes():
        try:
            walk.states.update(zip(node.outputs, made_of(walk, node)))
        except MixedTokensError as error:
            return node, str(error)
    for value in graph.model.graph.outputs:
        maker = value.producer()
        if maker is not None and maker.op_type == OP_TYPE:
            continue  # a cache
        if walk.state(value) != Along(1) or walk.shape(value)[0] != 1:
            return None, f"output {value.name!r} is not [sequences, tokens, ...]"
    return None, ""
