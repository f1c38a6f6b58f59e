"""Rules of operators that compute each element by itself."""

from __future__ import annotations

import onnx_ir as ir

from mla_opt.graphs.onnx.packing.tokens.operands import (
    broadcast,
    of_operand,
    only_first,
)
from mla_opt.graphs.onnx.packing.tokens.states import State, TokenWalk


def elementwise(walk: TokenWalk, node: ir.Node) -> State:
    """Operands that are broadcast to the result."""
    return broadcast(walk, node, range(len(node.inputs)))


def like_first(walk: TokenWalk, node: ir.Node) -> State:
    """Each element of the first operand by itself."""
    return only_first(walk, node)


def cast_like(walk: TokenWalk, node: ir.Node) -> State:
    """CastLike: of the second operand the type alone is read."""
    first = of_operand(walk, node, 0)
    return "same" if first is None else first
